//! How this node's kubelet is configured: by its file and its flags, as far as the host lets them be seen.
//!
//! The API server would tell it all (`nodes/proxy`, `configz`), with a right that also runs commands in pods: that is not
//! asked for. Formats: `KubeletConfiguration` of `kubelet.config.k8s.io/v1beta1`; the page "kubelet" of the Kubernetes
//! reference for its flags, which come before the file.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use serde::Deserialize;
use stoker_core::examination::kubelet::MANIFESTS;
use stoker_core::examination::{Kubelet, Threshold};
use stoker_core::quantity::Amounts;

use super::quantity::{millis, ones};
use crate::node::host;

/// Where distributions write it, where no process of that name says: kubeadm and minikube, kubespray, OpenShift, EKS, k3s
/// and RKE2 (whose kubelets run within another program).
const FILES: [&str; 7] = [
    "/var/lib/kubelet/config.yaml",
    "/etc/kubernetes/kubelet-config.yaml",
    "/etc/kubernetes/kubelet.conf",
    "/etc/kubernetes/kubelet/config.json",
    "/etc/kubernetes/kubelet/kubelet-config.json",
    "/var/lib/rancher/k3s/agent/etc/kubelet.conf.d/00-k3s-defaults.conf",
    "/var/lib/rancher/rke2/agent/etc/kubelet.conf.d/00-rke2-defaults.conf",
];
const KIND: &str = "KubeletConfiguration";
const ROOT: &str = "/var/lib/kubelet";
/// `evictionHard`, where nothing is said, on Linux.
const EVICTION: [(&str, &str); 4] = [
    ("memory.available", "100Mi"),
    ("nodefs.available", "10%"),
    ("nodefs.inodesFree", "5%"),
    ("imagefs.available", "15%"),
];

/// The parts of the file that matter here.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Written {
    kind: String,
    static_pod_path: Option<String>,
    system_reserved: Option<Amount>,
    kube_reserved: Option<Amount>,
    eviction_hard: Option<Amount>,
    merge_default_eviction_settings: Option<bool>,
    enforce_node_allocatable: Option<Vec<String>>,
}

type Amount = BTreeMap<String, String>;

/// The kubelet of the host whose root is here; or, in words, why it cannot be seen. Blocks for some files.
///
/// # Errors
/// In words.
pub fn kubelet(host_root: &Path) -> Result<Kubelet, String> {
    let flags = flags(host_root);
    let named = flags.as_ref().and_then(|flags| flags.get("config").cloned());
    let (path, written) = match &named {
        Some(path) => (path.clone(), read(host_root, path)?),
        None => match found(host_root) {
            Ok(found) => found,
            // One that runs without a file has its defaults.
            Err(_) if flags.is_some() => (String::new(), Written::default()),
            Err(why) => return Err(why),
        },
    };
    Ok(settled(path, written, &flags.unwrap_or_default()))
}

fn found(host_root: &Path) -> Result<(String, Written), String> {
    let mut why = "no kubelet runs here that says where its configuration is, nor is it at any usual place".to_owned();
    for path in FILES {
        match host::read(host_root, path) {
            Ok(text) => match parse(&text) {
                Some(written) => return Ok((path.to_owned(), written)),
                // Of kubeadm this is the way to the API server.
                None if path.ends_with("kubelet.conf") => {}
                None => return Err(format!("{path} is no {KIND}")),
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => why = unread(path, &error),
        }
    }
    Err(why)
}

fn read(host_root: &Path, path: &str) -> Result<Written, String> {
    let text = host::read(host_root, path).map_err(|error| unread(path, &error))?;
    // What it says instead is not told: the path is what a process calls it.
    parse(&text).ok_or_else(|| format!("{path} is no {KIND}"))
}

fn unread(path: &str, error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::PermissionDenied => {
            format!("{path} cannot be read: of the host's files only the profile `full` sees any")
        }
        _ => format!("{path} cannot be read: {error}"),
    }
}

fn parse(text: &str) -> Option<Written> {
    let written: Written = serde_saphyr::from_str(text).ok()?;
    (written.kind == KIND).then_some(written)
}

/// Those of the process that is called `kubelet`, without their hyphens. Nothing where none runs; one in a pod is not the
/// node's.
fn flags(host_root: &Path) -> Option<BTreeMap<String, String>> {
    let processes = fs::read_dir(host_root.join("proc")).ok()?.flatten();
    let numbered = |name: &str| name.bytes().all(|byte| byte.is_ascii_digit());
    let kubelet = processes.filter(|entry| entry.file_name().to_str().is_some_and(numbered)).find(|entry| {
        let text = |file: &str| fs::read_to_string(entry.path().join(file));
        text("comm").is_ok_and(|name| name.trim() == "kubelet")
            && text("cgroup").map_or(true, |groups| !groups.contains("kubepods"))
    })?;
    let line = fs::read(kubelet.path().join("cmdline")).ok()?;
    let words: Vec<_> = line.split(|byte| *byte == 0).map(String::from_utf8_lossy).collect();
    let flag = |(at, word): (usize, &std::borrow::Cow<'_, str>)| {
        let name = word.strip_prefix("--")?;
        Some(match name.split_once('=') {
            Some((name, value)) => (name.to_owned(), value.to_owned()),
            None => (name.to_owned(), words.get(at + 1).map_or_else(String::new, |next| next.clone().into_owned())),
        })
    };
    Some(words.iter().enumerate().filter_map(flag).collect())
}

fn settled(path: String, written: Written, flags: &BTreeMap<String, String>) -> Kubelet {
    // As flags write lists: `memory=1Gi,cpu=500m`, `memory.available<100Mi`.
    let list = |flag: &str, separator: char| -> Option<Amount> {
        let parts = flags.get(flag)?.split(',').filter_map(|part| part.split_once(separator));
        Some(parts.map(|(name, value)| (name.to_owned(), value.to_owned())).collect())
    };
    let mut eviction = list("eviction-hard", '<').or(written.eviction_hard);
    if let Some(thresholds) = &mut eviction
        && written.merge_default_eviction_settings == Some(true)
    {
        for (signal, value) in EVICTION {
            thresholds.entry(signal.to_owned()).or_insert_with(|| value.to_owned());
        }
    }
    let eviction = eviction.unwrap_or_else(|| EVICTION.map(|(name, value)| (name.to_owned(), value.to_owned())).into());
    let threshold = |signal: &str| eviction.get(signal).and_then(|value| threshold(value));
    let enforced = flags.get("enforce-node-allocatable").map(|list| list.split(',').map(str::to_owned).collect());
    let enforced: Option<Vec<String>> = enforced.or(written.enforce_node_allocatable);
    Kubelet {
        path,
        root: flags.get("root-dir").cloned().unwrap_or_else(|| ROOT.to_owned()),
        manifests: flags.get("pod-manifest-path").cloned().or(written.static_pod_path).unwrap_or(MANIFESTS.to_owned()),
        kube_reserved: amounts(list("kube-reserved", '=').or(written.kube_reserved)),
        system_reserved: amounts(list("system-reserved", '=').or(written.system_reserved)),
        limits_pods: enforced.is_none_or(|names| names.iter().any(|name| name == "pods")),
        memory: threshold("memory.available"),
        nodefs: threshold("nodefs.available"),
        nodefs_inodes: threshold("nodefs.inodesFree"),
        imagefs: threshold("imagefs.available"),
    }
}

fn amounts(list: Option<Amount>) -> Amounts {
    let list = list.unwrap_or_default();
    let part = |name: &str, read: fn(&Quantity) -> Option<u64>| {
        list.get(name).and_then(|value| read(&Quantity(value.clone()))).unwrap_or(0)
    };
    Amounts { cpu_millis: part("cpu", millis), memory_bytes: part("memory", ones), ..Amounts::default() }
}

/// A quantity or a percentage; of nothing it is none.
fn threshold(text: &str) -> Option<Threshold> {
    let threshold = match text.trim().strip_suffix('%') {
        // Thousandths of a percent, in hundredths.
        Some(percent) => {
            Threshold::Basis(u32::try_from(millis(&Quantity(percent.to_owned()))? / 10).ok().filter(|b| *b <= 10_000)?)
        }
        None => Threshold::Amount(ones(&Quantity(text.to_owned()))?),
    };
    (threshold.of(u64::MAX) > 0).then_some(threshold)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn process(root: &Path, pid: u32, group: &str, line: &str) {
        let place = root.join("proc").join(pid.to_string());
        fs::create_dir_all(&place).unwrap();
        fs::write(place.join("comm"), "kubelet\n").unwrap();
        fs::write(place.join("cgroup"), format!("0::{group}\n")).unwrap();
        fs::write(place.join("cmdline"), line.replace(' ', "\0")).unwrap();
    }

    fn file(root: &Path, path: &str, text: &str) {
        let path = root.join(path.trim_start_matches('/'));
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    const WRITTEN: &str = "\
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
cgroupDriver: systemd
staticPodPath: /etc/kubernetes/manifests
systemReserved: {cpu: 500m, memory: 1Gi}
kubeReserved:
  cpu: \"1\"
evictionHard: {memory.available: 5%, nodefs.available: 2Gi, imagefs.available: 0%}
enforceNodeAllocatable: [none]
";

    #[test]
    fn a_file_that_the_process_names_is_read_and_flags_come_before_it() {
        let root = tempfile::tempdir().unwrap();
        process(root.path(), 7, "/kubepods.slice/kubepods-pod1.slice/x", "kubelet --config=/etc/a-trap");
        process(root.path(), 900, "/system.slice/kubelet.service", "/usr/bin/kubelet --config /etc/kubelet.yaml");
        assert!(kubelet(root.path()).unwrap_err().starts_with("/etc/kubelet.yaml cannot be read"));
        file(root.path(), "/etc/kubelet.yaml", "kind: Config\n");
        assert_eq!(kubelet(root.path()).unwrap_err(), "/etc/kubelet.yaml is no KubeletConfiguration");
        file(root.path(), "/etc/kubelet.yaml", WRITTEN);
        let seen = kubelet(root.path()).unwrap();
        let amounts = |cpu_millis, memory_bytes| Amounts { cpu_millis, memory_bytes, ..Amounts::default() };
        let expected = Kubelet {
            path: "/etc/kubelet.yaml".into(),
            root: ROOT.into(),
            manifests: MANIFESTS.into(),
            kube_reserved: amounts(1000, 0),
            system_reserved: amounts(500, 1 << 30),
            limits_pods: false,
            memory: Some(Threshold::Basis(500)),
            nodefs: Some(Threshold::Amount(2 << 30)),
            nodefs_inodes: None,
            imagefs: None,
        };
        assert_eq!(seen, expected);
        let line = "kubelet --config=/etc/kubelet.yaml --eviction-hard=memory.available<1Gi --system-reserved=memory=2Gi \
                    --enforce-node-allocatable=pods,system-reserved --root-dir=/data/kubelet";
        process(root.path(), 900, "/system.slice/kubelet.service", line);
        let seen = kubelet(root.path()).unwrap();
        assert_eq!((seen.memory, seen.nodefs), (Some(Threshold::Amount(1 << 30)), None));
        assert_eq!((seen.system_reserved, seen.limits_pods), (amounts(0, 2 << 30), true));
        assert_eq!(seen.root, "/data/kubelet");
    }

    #[test]
    fn without_a_process_the_usual_places_are_looked_at() {
        let root = tempfile::tempdir().unwrap();
        assert!(kubelet(root.path()).unwrap_err().starts_with("no kubelet runs here"));
        // Of kubeadm this is no configuration.
        file(root.path(), "/etc/kubernetes/kubelet.conf", "apiVersion: v1\nkind: Config\n");
        assert!(kubelet(root.path()).is_err());
        file(root.path(), "/etc/kubernetes/kubelet/config.json", "{\"kind\": \"KubeletConfiguration\"}");
        let seen = kubelet(root.path()).unwrap();
        assert_eq!(seen.path, "/etc/kubernetes/kubelet/config.json");
        assert_eq!((seen.memory, seen.imagefs), (Some(Threshold::Amount(100 << 20)), Some(Threshold::Basis(1500))));
        assert!(seen.limits_pods);
        let merged =
            "kind: KubeletConfiguration\nevictionHard: {memory.available: 1Gi}\nmergeDefaultEvictionSettings: true\n";
        file(root.path(), "/var/lib/kubelet/config.yaml", merged);
        let seen = kubelet(root.path()).unwrap();
        assert_eq!((seen.memory, seen.nodefs_inodes), (Some(Threshold::Amount(1 << 30)), Some(Threshold::Basis(500))));
    }

    #[test]
    fn a_threshold_is_a_quantity_or_a_percentage() {
        for (text, expected) in [
            ("100Mi", Some(Threshold::Amount(100 << 20))),
            ("7.5%", Some(Threshold::Basis(750))),
            ("100%", Some(Threshold::Basis(10_000))),
            ("101%", None),
            ("0%", None),
            ("0", None),
            ("-1%", None),
            ("much", None),
        ] {
            assert_eq!(threshold(text), expected, "{text}");
        }
    }
}
