//! Whom a client's certificate names: its common name, else its first URI; its organisations are its groups.

use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::caller::{Identity, Way};

/// The most bytes of a name.
const NAME_BYTES_MAX: usize = 512;
/// The most groups, and the most URIs.
const NAMES_MAX: usize = 64;

/// Who it is. The certificate was verified: what is read here was signed by an authority of ours.
///
/// # Errors
/// When it names nobody.
pub(super) fn who(certificate: &[u8]) -> Result<Identity, String> {
    let (_, certificate) =
        X509Certificate::from_der(certificate).map_err(|error| format!("the certificate cannot be read: {error}"))?;
    let plain = |text: &str| (1..=NAME_BYTES_MAX).contains(&text.len()) && !text.chars().any(char::is_control);
    let texts = |values: Vec<&str>| -> Vec<String> {
        values.into_iter().filter(|text| plain(text)).take(NAMES_MAX).map(str::to_owned).collect()
    };
    let subject = certificate.subject();
    let common = texts(subject.iter_common_name().filter_map(|name| name.as_str().ok()).collect());
    let groups = texts(subject.iter_organization().filter_map(|name| name.as_str().ok()).collect());
    let alternatives = certificate.subject_alternative_name().ok().flatten();
    let uris = alternatives.iter().flat_map(|names| &names.value.general_names).filter_map(|name| match name {
        GeneralName::URI(uri) => Some(*uri),
        _ => None,
    });
    let uris = texts(uris.collect());
    let Some(name) = common.first().or(uris.first()).cloned() else {
        return Err("the certificate names nobody: give it a common name, or a URI".to_owned());
    };
    Ok(Identity { way: Way::Certificate, also: uris, groups, ..Identity::nobody(name) })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use rcgen::{CertificateParams, DnType, KeyPair, SanType};

    use super::*;

    fn named(fill: impl FnOnce(&mut CertificateParams)) -> Result<Identity, String> {
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        fill(&mut params);
        let key = KeyPair::generate().unwrap();
        who(params.self_signed(&key).unwrap().der())
    }

    #[test]
    fn names_are_the_common_name_and_uris_groups_the_organisations() {
        let uri = || SanType::URI("spiffe://farm/jenkins".try_into().unwrap());
        let both = named(|params| {
            params.distinguished_name.push(DnType::CommonName, "jenkins");
            params.distinguished_name.push(DnType::OrganizationName, "ci");
            params.subject_alt_names.push(uri());
        });
        let both = both.unwrap();
        assert_eq!(
            (both.name.as_str(), both.groups, both.also),
            ("jenkins", vec!["ci".to_owned()], vec!["spiffe://farm/jenkins".to_owned()])
        );
        assert_eq!(named(|params| params.subject_alt_names.push(uri())).unwrap().name, "spiffe://farm/jenkins");
        assert!(named(|_| {}).unwrap_err().contains("names nobody"));
        assert!(who(b"nonsense").is_err());
    }
}
