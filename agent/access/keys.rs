//! The keys with which the cluster signs service account tokens: RFC 7517, as the API server gives them.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P384_SHA384_FIXED, EcdsaVerificationAlgorithm, RSA_PKCS1_2048_8192_SHA256,
    RSA_PKCS1_2048_8192_SHA384, RSA_PKCS1_2048_8192_SHA512, RsaParameters, RsaPublicKeyComponents, UnparsedPublicKey,
};
use serde::Deserialize;

/// The most keys that are kept; a cluster that rotates has two or three.
const KEYS_MAX: usize = 32;

/// A public key, and what it is called.
#[derive(Debug, PartialEq, Eq)]
struct Key {
    id: String,
    value: Value,
}

#[derive(Debug, PartialEq, Eq)]
enum Value {
    Rsa {
        n: Vec<u8>,
        e: Vec<u8>,
    },
    /// An uncompressed point, and the algorithm that goes with its curve.
    Point(&'static str, Vec<u8>),
}

/// A set of them.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Keys(Vec<Key>);

/// As the set is written; what other kinds of keys have is left out.
#[derive(Deserialize)]
struct Written {
    keys: Vec<serde_json::Value>,
}

#[derive(Deserialize)]
struct WrittenKey {
    kty: String,
    #[serde(default)]
    kid: String,
    #[serde(default)]
    r#use: Option<String>,
    #[serde(default)]
    crv: String,
    #[serde(default)]
    n: String,
    #[serde(default)]
    e: String,
    #[serde(default)]
    x: String,
    #[serde(default)]
    y: String,
}

impl Keys {
    /// Reads a set. Keys of a kind that nobody signs service account tokens with are left out.
    pub(super) fn read(text: &[u8]) -> Result<Self, String> {
        let written: Written = serde_json::from_slice(text).map_err(|error| format!("is no set of keys: {error}"))?;
        let keys = written.keys.into_iter().filter_map(|key| read_key(serde_json::from_value(key).ok()?));
        let keys: Vec<Key> = keys.take(KEYS_MAX).collect();
        if keys.is_empty() { Err("has no key of RSA, P-256 or P-384".to_owned()) } else { Ok(Self(keys)) }
    }

    /// Whether there is a key of that name.
    pub(super) fn knows(&self, id: &str) -> bool {
        self.0.iter().any(|key| key.id == id)
    }

    /// Whether the key of that name made the signature, by that algorithm and no other.
    pub(super) fn verify(&self, id: &str, algorithm: &str, message: &[u8], signature: &[u8]) -> bool {
        let of_name = self.0.iter().filter(|key| key.id == id);
        of_name.into_iter().any(|key| match (&key.value, rsa(algorithm), ecdsa(algorithm)) {
            (Value::Rsa { n, e }, Some(parameters), _) => {
                RsaPublicKeyComponents { n, e }.verify(parameters, message, signature).is_ok()
            }
            (Value::Point(of, point), _, Some(ecdsa)) if *of == algorithm => {
                UnparsedPublicKey::new(ecdsa, point).verify(message, signature).is_ok()
            }
            _ => false,
        })
    }
}

fn read_key(key: WrittenKey) -> Option<Key> {
    if key.r#use.is_some_and(|word| word != "sig") {
        return None;
    }
    let bytes = |text: &str| URL_SAFE_NO_PAD.decode(text).ok().filter(|bytes| !bytes.is_empty());
    let value = match (key.kty.as_str(), key.crv.as_str()) {
        ("RSA", _) => Value::Rsa { n: bytes(&key.n)?, e: bytes(&key.e)? },
        ("EC", curve) => {
            let (algorithm, length) = match curve {
                "P-256" => ("ES256", 32),
                "P-384" => ("ES384", 48),
                _ => return None,
            };
            let coordinate = |text: &str| bytes(text).filter(|bytes| bytes.len() == length);
            // SEC 1, 2.3.3: an uncompressed point begins with 4.
            Value::Point(algorithm, [vec![4], coordinate(&key.x)?, coordinate(&key.y)?].concat())
        }
        _ => return None,
    };
    Some(Key { id: key.kid, value })
}

fn rsa(algorithm: &str) -> Option<&'static RsaParameters> {
    match algorithm {
        "RS256" => Some(&RSA_PKCS1_2048_8192_SHA256),
        "RS384" => Some(&RSA_PKCS1_2048_8192_SHA384),
        "RS512" => Some(&RSA_PKCS1_2048_8192_SHA512),
        _ => None,
    }
}

fn ecdsa(algorithm: &str) -> Option<&'static EcdsaVerificationAlgorithm> {
    match algorithm {
        "ES256" => Some(&ECDSA_P256_SHA256_FIXED),
        "ES384" => Some(&ECDSA_P384_SHA384_FIXED),
        _ => None,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// RFC 7515, A.2 (RS256) and A.3 (ES256): the examples of the standard.
    const RSA_KEY: &str = r#"{"kty":"RSA","kid":"rsa","e":"AQAB","n":"ofgWCuLjybRlzo0tZWJjNiuSfb4p4fAkd_wWJcyQoTbji9k0l8W26mPddxHmfHQp-Vaw-4qPCJrcS2mJPMEzP1Pt0Bm4d4QlL-yRT-SFd2lZS-pCgNMsD1W_YpRPEwOWvG6b32690r2jZ47soMZo9wGzjb_7OMg0LOL-bSf63kpaSHSXndS5z5rexMdbBYUsLA9e-KXBdQOS-UTo7WTBEMa2R2CapHg665xsmtdVMTBQY4uDZlxvb3qCo5ZwKh9kG4LT6_I5IhlJH7aGhyxXFvUK-DWNmoudF8NAco9_h9iaGNj8q2ethFkMLs91kzk2PAcDTW9gb54h4FRWyuXpoQ"}"#;
    const EC_KEY: &str = r#"{"kty":"EC","kid":"ec","crv":"P-256","x":"f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU","y":"x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"}"#;
    const RSA_MESSAGE: &str = "eyJhbGciOiJSUzI1NiJ9.eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ";
    const RSA_SIGNATURE: &str = "cC4hiUPoj9Eetdgtv3hF80EGrhuB__dzERat0XF9g2VtQgr9PJbu3XOiZj5RZmh7AAuHIm4Bh-0Qc_lF5YKt_O8W2Fp5jujGbds9uJdbF9CUAr7t1dnZcAcQjbKBYNX4BAynRFdiuB--f_nZLgrnbyTyWzO75vRK5h6xBArLIARNPvkSjtQBMHlb1L07Qe7K0GarZRmB_eSN9383LcOLn6_dO--xi12jzDwusC-eOkHWEsqtFZESc6BfI7noOPqvhJ1phCnvWh6IeYI2w9QOYEUipUTI8np6LbgGY9Fs98rqVt5AXLIhWkWywlVmtVrBp0igcN_IoypGlUPQGe77Rw";
    const EC_MESSAGE: &str = "eyJhbGciOiJFUzI1NiJ9.eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ";
    const EC_SIGNATURE: &str = "DtEhU3ljbEg8L38VWAfUAqOyKAM6-Xx-F4GawxaepmXFCgfTjDxw5djxLa8ISlSApmWQxfKTUJqPP3-Kg6NU1Q";

    fn keys() -> Keys {
        let other = r#"{"kty":"OKP","crv":"Ed25519","x":"AA"}"#;
        Keys::read(format!(r#"{{"keys":[{RSA_KEY},{EC_KEY},{other},7]}}"#).as_bytes()).unwrap()
    }

    #[test]
    fn signatures_of_the_standard_are_verified_and_no_others() {
        let keys = keys();
        let rsa = URL_SAFE_NO_PAD.decode(RSA_SIGNATURE).unwrap();
        let ec = URL_SAFE_NO_PAD.decode(EC_SIGNATURE).unwrap();
        assert!(keys.verify("rsa", "RS256", RSA_MESSAGE.as_bytes(), &rsa));
        assert!(keys.verify("ec", "ES256", EC_MESSAGE.as_bytes(), &ec));
        for (id, algorithm, message, signature) in [
            ("rsa", "RS256", EC_MESSAGE, &rsa),
            ("ec", "RS256", RSA_MESSAGE, &rsa),
            ("", "RS256", RSA_MESSAGE, &rsa),
            ("rsa", "RS512", RSA_MESSAGE, &rsa),
            ("rsa", "none", RSA_MESSAGE, &rsa),
            ("rsa", "HS256", RSA_MESSAGE, &rsa),
            ("ec", "ES384", EC_MESSAGE, &ec),
            ("ec", "ES256", EC_MESSAGE, &rsa),
        ] {
            assert!(!keys.verify(id, algorithm, message.as_bytes(), signature), "{id} {algorithm}");
        }
    }

    #[test]
    fn a_set_without_a_key_that_counts_is_none() {
        assert!(keys().knows("ec") && !keys().knows(""));
        for wrong in ["", "[]", "{}", r#"{"keys":[]}"#, r#"{"keys":[{"kty":"EC","crv":"P-256","x":"AA","y":"AA"}]}"#] {
            assert!(Keys::read(wrong.as_bytes()).is_err(), "{wrong}");
        }
        let for_encryption = RSA_KEY.replace("\"kid\"", "\"use\":\"enc\",\"kid\"");
        assert!(Keys::read(format!(r#"{{"keys":[{for_encryption}]}}"#).as_bytes()).is_err());
    }
}
