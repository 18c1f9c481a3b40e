//! What a pod asks for: its volume's attributes, beside what the kubelet says of the pod. Each is checked here once, and
//! refused by its name.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};
use std::str::FromStr as _;

use serde::Deserialize;
use stoker_core::source::{RepositoryUrl, SourceRef};
use stoker_proto::v1;
use tonic::Status;

use crate::cli::amount;
use crate::config::TRUST_DEFAULT;
use crate::rpc::error::bad;
use crate::sizing::is_cache_key;

/// What the kubelet adds to attributes begins with this.
const OF_THE_KUBELET: &str = "csi.storage.k8s.io/";
const TOKENS: &str = "csi.storage.k8s.io/serviceAccount.tokens";
/// All there are of each kind.
const OF_A_WORKSPACE: [&str; 15] = [
    "kind",
    "lease",
    "repository",
    "ref",
    "cpu",
    "memory",
    "disk",
    "inodes",
    "time",
    "tenant",
    "subPath",
    "submodules",
    "lfs",
    "user",
    "group",
];
const OF_A_CACHE: [&str; 4] = ["kind", "key", "tenant", "trust"];
const OF_MIRRORS: [&str; 2] = ["kind", "tenant"];
/// Those of a build that is yet to be admitted.
const OF_A_BUILD: [&str; 8] = ["repository", "ref", "cpu", "memory", "disk", "inodes", "time", "tenant"];
/// The longest attribute, in bytes.
const VALUE_BYTES_MAX: usize = 4096;

/// Attributes, by name.
type Attributes = BTreeMap<String, String>;

/// A pod, as the kubelet tells it. Its token proves it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Pod {
    pub(super) namespace: String,
    pub(super) name: String,
    pub(super) uid: String,
    pub(super) service_account: String,
}

/// What is built.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Of {
    /// What a lease is for that was made before.
    Lease(String),
    /// What the pod's lease is for, or is admitted for this volume.
    Build(Box<Wanted>),
    /// No build: the cache that a tenant's builds share.
    Cache {
        /// Empty: that of the pod's namespace.
        tenant: String,
        /// Of what is built from mirrors of this trust class.
        trust: String,
        /// One directory of it.
        key: Option<String>,
    },
    /// No build: the mirrors that a tenant may read.
    Mirrors {
        /// Empty: that of the pod's namespace.
        tenant: String,
    },
}

/// A build that a volume is for.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Wanted {
    /// As it is asked for.
    pub(super) build: v1::Build,
    /// The repository's key, and the ref, as leases have them.
    pub(super) repository: String,
    pub(super) reference: String,
}

/// What a pod asks for.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Asked {
    pub(super) pod: Pod,
    pub(super) of: Of,
    pub(super) shape: Shape,
}

/// What of a workspace is mounted, and how.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Shape {
    /// The directory of the workspace that is mounted; empty: all of it.
    pub(super) sub_path: PathBuf,
    pub(super) submodules: bool,
    pub(super) lfs: bool,
    /// Who the workspace belongs to.
    pub(super) user: Option<u32>,
    pub(super) group: Option<u32>,
}

impl Asked {
    /// What the context of a volume says.
    pub(super) fn read(context: &Attributes) -> Result<Self, Status> {
        if context.get("csi.storage.k8s.io/ephemeral").map(String::as_str) != Some("true") {
            let what = "is not true: only inline volumes of a pod are served; write `csi` into the pod's own volumes";
            return Err(bad("csi.storage.k8s.io/ephemeral", what));
        }
        let told = |name: &str| {
            let name = format!("{OF_THE_KUBELET}{name}");
            let value = context.get(&name).filter(|value| !value.is_empty() && value.len() <= 253).cloned();
            value.ok_or_else(|| bad(name, "is missing; the CSIDriver object must have `podInfoOnMount: true`"))
        };
        let pod = Pod {
            namespace: told("pod.namespace")?,
            name: told("pod.name")?,
            uid: told("pod.uid")?,
            service_account: told("serviceAccount.name")?,
        };
        let given = |(name, _): &(&String, &String)| !name.starts_with(OF_THE_KUBELET);
        let attributes: Attributes =
            context.iter().filter(given).map(|(name, value)| (name.clone(), value.clone())).collect();
        let (of, shape) = checked(&attributes)?;
        Ok(Self { pod, of, shape })
    }
}

impl Shape {
    fn read(attributes: &Attributes) -> Result<Self, Status> {
        let part = |name: &str| attributes.get(name).map(String::as_str);
        Ok(Self {
            sub_path: part("subPath").map_or_else(|| Ok(PathBuf::new()), sub_path)?,
            submodules: flag("submodules", part("submodules"))?,
            lfs: flag("lfs", part("lfs"))?,
            user: part("user").map(|text| number("user", text)).transpose()?,
            group: part("group").map(|text| number("group", text)).transpose()?,
        })
    }
}

/// What a volume is for, where its pod waits behind a gate.
pub(crate) enum Behind {
    Build(Box<v1::Build>),
    /// A lease that it names.
    Lease,
    /// No build: a directory of the node.
    Directory,
}

/// The same of a volume's attributes as a pod has them.
pub(crate) fn behind(attributes: &Attributes) -> Result<Behind, Status> {
    Ok(match checked(attributes)?.0 {
        Of::Build(wanted) => Behind::Build(Box::new(wanted.build)),
        Of::Lease(_) => Behind::Lease,
        Of::Cache { .. } | Of::Mirrors { .. } => Behind::Directory,
    })
}

/// What a volume is for, and how it is mounted; each attribute is one of its kind.
fn checked(attributes: &Attributes) -> Result<(Of, Shape), Status> {
    let kind = attributes.get("kind").map_or("workspace", String::as_str);
    let names = match kind {
        "workspace" => OF_A_WORKSPACE.as_slice(),
        "cache" => &OF_A_CACHE,
        "mirrors" => &OF_MIRRORS,
        _ => return Err(bad("kind", "is none that there is; give workspace, cache or mirrors, or leave it out")),
    };
    attributes.iter().try_for_each(|(name, value)| known(kind, names, name, value))?;
    Ok((of(kind, attributes)?, Shape::read(attributes)?))
}

/// The pod's token for an audience: among the attributes, or, where the CSIDriver object says so, among the secrets.
pub(super) fn token(context: &Attributes, secrets: &Attributes, audience: &str) -> Result<String, Status> {
    #[derive(Deserialize)]
    struct Token {
        token: String,
    }
    let missing = || {
        let what = "has no token for it; the CSIDriver object must have it in `tokenRequests`";
        Status::unauthenticated(format!("{TOKENS}: {audience:?} {what}"))
    };
    let text = context.get(TOKENS).or_else(|| secrets.get(TOKENS)).ok_or_else(missing)?;
    // What is wrong with it is not told: it would be told with the token.
    let tokens: BTreeMap<String, Token> =
        serde_json::from_str(text).map_err(|_| bad(TOKENS, "is not what a kubelet writes"))?;
    tokens.into_iter().find(|(of, _)| of == audience).map(|(_, token)| token.token).ok_or_else(missing)
}

fn known(kind: &str, names: &[&str], name: &str, value: &str) -> Result<(), Status> {
    if value.len() > VALUE_BYTES_MAX {
        return Err(bad(name, format!("has {} bytes, at most {VALUE_BYTES_MAX} are allowed", value.len())));
    }
    match name {
        name if names.contains(&name) => Ok(()),
        "depth" => {
            let what =
                "is not known here: the whole history is on the node, and a part of it is no faster; leave it out";
            Err(bad("depth", what))
        }
        other => {
            let shown: String = other.chars().take(64).filter(|c| !c.is_control()).collect();
            let what = format!("is no attribute of a volume of kind {kind}; there are {}", names.join(", "));
            Err(bad(shown, what))
        }
    }
}

fn of(kind: &str, attributes: &Attributes) -> Result<Of, Status> {
    let part = |name: &str| attributes.get(name).map(String::as_str);
    let name = |name: &str| {
        let given = part(name).map_or_else(|| Ok(String::new()), amount::name);
        given.map_err(|why| bad(name, why))
    };
    let tenant = name("tenant")?;
    match kind {
        "cache" => {
            let key = part("key").map(|key| match is_cache_key(key) {
                true => Ok(key.to_owned()),
                false => Err(bad("key", "is no name of a cache; give lower-case letters, digits, '.', '_' and '-'")),
            });
            let trust = name("trust")?;
            let trust = if trust.is_empty() { TRUST_DEFAULT.to_owned() } else { trust };
            return Ok(Of::Cache { tenant, trust, key: key.transpose()? });
        }
        "mirrors" => return Ok(Of::Mirrors { tenant }),
        _ => {}
    }
    if let Some(lease) = part("lease") {
        if let Some(name) = OF_A_BUILD.iter().find(|name| attributes.contains_key(**name)) {
            return Err(bad(*name, "cannot be had together with `lease`, which knows it; leave one of them out"));
        }
        let id = stoker_core::identity::LeaseId::try_from(lease.to_owned());
        let id = id.map_err(|why| bad("lease", format!("{why}; give the id of a lease")))?;
        return Ok(Of::Lease(id.into()));
    }
    let url = part("repository").ok_or_else(|| bad("repository", "is missing; give its URL, or a `lease`"))?;
    let url = RepositoryUrl::from_str(url).map_err(|why| bad("repository", why.to_string()))?;
    let reference = part("ref").map_or(Ok(SourceRef::Head), str::parse);
    let reference = reference.map_err(|why| bad("ref", why.to_string()))?;
    let (key, written) = (url.key().to_owned(), reference.to_string());
    let amount = |name: &str, read: fn(&str) -> Result<i64, String>| {
        part(name).map(read).transpose().map_err(|why| bad(name, why))
    };
    let declared = v1::Size {
        cpu_millis: amount("cpu", amount::cpu_millis)?,
        memory_bytes: amount("memory", amount::bytes)?,
        disk_bytes: amount("disk", amount::bytes)?,
        disk_inodes: amount("inodes", amount::inodes)?,
        time_budget: part("time").map(amount::span).transpose().map_err(|why| bad("time", why))?,
    };
    let build = v1::Build {
        source: Some(amount::message(url, reference)),
        scope: Some(v1::Scope { tenant, ..v1::Scope::default() }),
        declared: Some(declared),
        ..v1::Build::default()
    };
    Ok(Of::Build(Box::new(Wanted { build, repository: key, reference: written })))
}

fn sub_path(text: &str) -> Result<PathBuf, Status> {
    let path = Path::new(text);
    let is_plain = path.components().all(|part| matches!(part, Component::Normal(_)));
    match is_plain && !text.is_empty() && !text.contains('\0') {
        true => Ok(path.to_owned()),
        false => Err(bad("subPath", "is no plain relative path; name a directory of the workspace, as src")),
    }
}

fn flag(name: &str, text: Option<&str>) -> Result<bool, Status> {
    match text {
        None | Some("false") => Ok(false),
        Some("true") => Ok(true),
        Some(_) => Err(bad(name, "is neither true nor false; write one of them, in quotes")),
    }
}

fn number(name: &str, text: &str) -> Result<u32, Status> {
    // The largest one stands for none, chown(2).
    let number = text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse::<u32>().ok()).flatten();
    let number = number.filter(|number| *number < u32::MAX);
    number.ok_or_else(|| bad(name, "is no id; give a number from 0 to 4294967294, in quotes"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn context(attributes: &[(&str, &str)]) -> Attributes {
        let of_the_kubelet = [
            ("csi.storage.k8s.io/ephemeral", "true"),
            ("csi.storage.k8s.io/pod.namespace", "builds"),
            ("csi.storage.k8s.io/pod.name", "pod"),
            ("csi.storage.k8s.io/pod.uid", "uid"),
            ("csi.storage.k8s.io/serviceAccount.name", "default"),
        ];
        of_the_kubelet.iter().chain(attributes).map(|(name, value)| ((*name).into(), (*value).into())).collect()
    }

    const REPOSITORY: (&str, &str) = ("repository", "https://git.example.org/a");

    #[test]
    fn attributes_are_read_as_the_command_line_reads_them() {
        let more = [
            REPOSITORY,
            ("ref", "pr:7"),
            ("cpu", "2.5"),
            ("memory", "8GiB"),
            ("time", "1h30m"),
            ("user", "1000"),
            ("inodes", "7000"),
        ];
        let asked = Asked::read(&context(&more)).unwrap();
        let Of::Build(wanted) = asked.of else { panic!("a build") };
        assert_eq!((wanted.repository.as_str(), wanted.reference.as_str()), ("git.example.org/a", "pr:7"));
        let build = wanted.build;
        let size = build.declared.unwrap();
        assert_eq!((size.cpu_millis, size.memory_bytes, size.disk_bytes), (Some(2500), Some(8 << 30), None));
        assert_eq!((size.time_budget.unwrap().seconds, size.disk_inodes), (5400, Some(7000)));
        assert_eq!(build.source.unwrap().r#ref, Some(v1::source::Ref::PullRequest(7)));
        let shape = asked.shape;
        assert_eq!((shape.user, shape.group, shape.submodules), (Some(1000), None, false));
        let asked = Asked::read(&context(&[("lease", "01"), ("subPath", "src/a")])).unwrap();
        assert_eq!((asked.of, asked.shape.sub_path), (Of::Lease("01".into()), PathBuf::from("src/a")));
    }

    #[test]
    fn each_bad_attribute_is_refused_by_its_name() {
        for (name, value) in [
            ("repository", "ext::sh -c id"),
            ("repository", "https://user:secret@git.example.org/a"),
            ("ref", "main"),
            ("ref", "branch:--upload-pack=x"),
            ("cpu", "-1"),
            ("memory", "8"),
            ("disk", "much"),
            ("inodes", "0"),
            ("inodes", "2k"),
            ("time", "0s"),
            ("tenant", "a\nb"),
            ("subPath", "../x"),
            ("subPath", "/etc"),
            ("subPath", "src/../../x"),
            ("subPath", ""),
            ("submodules", "yes"),
            ("lfs", "1"),
            ("user", "-1"),
            ("user", "4294967295"),
            ("group", "+5"),
            ("depth", "1"),
            ("lease", "01"),
            ("Repository", "x"),
            ("key", "target"),
            ("trust", "default"),
            ("kind", "scratch"),
        ] {
            let mut context = context(&[REPOSITORY]);
            context.insert(name.into(), value.into());
            let refused = Asked::read(&context).unwrap_err();
            assert_eq!(refused.code(), tonic::Code::InvalidArgument, "{name}={value}");
            let of = if name == "lease" { "repository" } else { name };
            assert!(refused.message().starts_with(&format!("{of}: ")), "{name}={value}: {}", refused.message());
            assert!(!refused.message().contains("secret"), "{}", refused.message());
            // A pod behind the gate is told the same before it has a node.
            let attributes = [REPOSITORY, (name, value)].map(|(name, value)| (name.to_owned(), value.to_owned()));
            let behind = behind(&attributes.into()).map(drop).unwrap_err();
            assert_eq!(behind.message(), refused.message());
        }
    }

    #[test]
    fn each_kind_has_attributes_of_its_own() {
        let asked = |attributes: &[(&str, &str)]| Asked::read(&context(attributes));
        let cache = [("kind", "cache"), ("key", "target"), ("trust", "private"), ("tenant", "red")];
        let (tenant, trust, key) = ("red".to_owned(), "private".to_owned(), Some("target".to_owned()));
        assert_eq!(asked(&cache).unwrap().of, Of::Cache { tenant, trust, key });
        let plain = Of::Cache { tenant: String::new(), trust: TRUST_DEFAULT.to_owned(), key: None };
        assert_eq!(asked(&cache[..1]).unwrap().of, plain);
        let mirrors = [("kind", "mirrors")];
        assert_eq!(asked(&mirrors).unwrap().of, Of::Mirrors { tenant: String::new() });
        assert!(matches!(asked(&[REPOSITORY, ("kind", "workspace")]).unwrap().of, Of::Build(_)));
        for (kind, name, value) in [
            ("cache", "repository", "https://git.example.org/a"),
            ("cache", "cpu", "1"),
            ("cache", "user", "1000"),
            ("cache", "subPath", "x"),
            ("cache", "lease", "01"),
            ("cache", "key", "../x"),
            ("cache", "key", "~2"),
            ("cache", "key", ""),
            ("mirrors", "key", "x"),
            ("mirrors", "trust", "private"),
            ("mirrors", "ref", "head"),
            ("mirrors", "depth", "1"),
        ] {
            let refused = asked(&[("kind", kind), (name, value)]).unwrap_err();
            assert_eq!(refused.code(), tonic::Code::InvalidArgument);
            assert!(refused.message().starts_with(&format!("{name}: ")), "{kind} {name}: {}", refused.message());
        }
    }

    #[test]
    fn a_volume_without_its_pod_is_refused() {
        for name in context(&[]).keys() {
            let mut context = context(&[REPOSITORY]);
            context.remove(name);
            let refused = Asked::read(&context).unwrap_err();
            assert!(refused.message().starts_with(name.as_str()), "{}", refused.message());
        }
    }

    #[test]
    fn a_token_is_taken_for_its_audience_only() {
        let with = |text: &str| Attributes::from([(TOKENS.to_owned(), text.to_owned())]);
        let tokens = with(r#"{"stoker.build":{"token":"t","expirationTimestamp":"2030-01-01T00:00:00Z"}}"#);
        let none = Attributes::new();
        assert_eq!(token(&tokens, &none, "stoker.build").unwrap(), "t");
        assert_eq!(token(&none, &tokens, "stoker.build").unwrap(), "t");
        assert_eq!(token(&tokens, &none, "vault").unwrap_err().code(), tonic::Code::Unauthenticated);
        assert_eq!(token(&none, &none, "stoker.build").unwrap_err().code(), tonic::Code::Unauthenticated);
        let odd = token(&with("hush"), &none, "stoker.build").unwrap_err();
        assert!(!odd.message().contains("hush"), "{}", odd.message());
    }
}
