//! A pod as the controller sees it: what does not matter here is dropped at once.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1 as core;
use stoker_core::cluster::{DRIVER, LEASE};
use stoker_core::placement::select::{Is, Requirement, Toleration};
use stoker_core::placement::{Intent, Selector, Wanted};
use stoker_core::quantity::{Amounts, Timestamp};
use stoker_core::source::RepositoryUrl;
use stoker_proto::v1;

use super::{GATE, PLACEMENT, SKIP};
use crate::volume::{Behind, behind};

/// Where a pod has no volume of ours, these say what it builds.
const REPOSITORY: &str = "stoker.build/repository";
const REF: &str = "stoker.build/ref";

/// Before the key of a requirement that is of a field; no key of a label begins so.
pub(super) const FIELD: &str = "field:";
/// Requirements, their values and tolerations of a pod.
const SELECTOR_PARTS_MAX: usize = 512;
/// Of others' gates so many are told.
const GATES_MAX: usize = 8;
/// The field that is a node's name.
const NAME: &str = "metadata.name";

/// A pod that waits for a node, or to come to the one that it has.
#[derive(Debug, Clone)]
pub(super) struct Pod {
    pub(super) namespace: String,
    pub(super) name: String,
    pub(super) uid: String,
    pub(super) service_account: String,
    pub(super) version: String,
    pub(super) created: Timestamp,
    pub(super) priority: i32,
    /// It has our gate.
    pub(super) gated: bool,
    /// The gates of others.
    pub(super) other_gates: Vec<String>,
    /// An operator lets it go.
    pub(super) skip: bool,
    pub(super) intent: Option<Intent>,
    pub(super) lease: String,
    /// It may go to the node of its intent alone, by its own words.
    pub(super) pinned: bool,
    /// What controls it makes it again.
    pub(super) replaceable: bool,
    /// What it asks for, or why that is nothing.
    pub(super) asks: Result<Asks, String>,
}

/// What a pod asks for.
#[derive(Debug, Clone)]
pub(super) struct Asks {
    pub(super) build: Box<v1::Build>,
    pub(super) wanted: Wanted,
}

impl Asks {
    /// With the size that a node takes it to need, where one said that.
    pub(super) fn sized(&self, size: Option<Amounts>) -> Self {
        let mut asks = self.clone();
        if let Some(size) = size {
            asks.wanted.size = Wanted::size_of(size);
        }
        asks
    }
}

impl Pod {
    /// Nothing where it is none of ours: it has neither the gate nor a node by us, or it ends.
    pub(super) fn of(pod: &core::Pod) -> Option<Self> {
        let (meta, spec) = (&pod.metadata, pod.spec.as_ref()?);
        let note = |name: &str| meta.annotations.as_ref().and_then(|all| all.get(name)).map(String::as_str);
        let gated = spec.scheduling_gates.iter().flatten().any(|gate| gate.name == GATE);
        let others = spec.scheduling_gates.iter().flatten().filter(|gate| gate.name != GATE);
        let other_gates = others.take(GATES_MAX).map(|gate| gate.name.clone()).collect();
        let intent: Option<Intent> = note(PLACEMENT).and_then(|text| text.parse().ok());
        // Anybody who may write the pod may have written it: nothing is meant from the future.
        let intent = intent.map(|intent| Intent { at: intent.at.min(crate::node::now()), ..intent });
        let has_node = spec.node_name.as_ref().is_some_and(|node| !node.is_empty());
        // Whoever took its gate away, without a lease it is none of ours any more.
        let has_lease = note(LEASE).is_some_and(|lease| !lease.is_empty());
        if (!gated && (intent.is_none() || has_node || !has_lease)) || meta.deletion_timestamp.is_some() {
            return None;
        }
        let created = meta.creation_timestamp.as_ref().map_or(0, |at| at.0.as_millisecond());
        let controller = meta.owner_references.iter().flatten().any(|owner| owner.controller == Some(true));
        Some(Self {
            namespace: meta.namespace.clone()?,
            name: meta.name.clone()?,
            uid: meta.uid.clone().filter(|uid| !uid.is_empty() && uid.len() <= 100)?,
            service_account: spec
                .service_account_name
                .clone()
                .filter(|name| !name.is_empty())
                .unwrap_or_else(|| "default".into()),
            version: meta.resource_version.clone().unwrap_or_default(),
            created: Timestamp(created),
            priority: spec.priority.unwrap_or(0),
            gated,
            other_gates,
            skip: note(SKIP) == Some("skip"),
            lease: note(LEASE).unwrap_or_default().to_owned(),
            pinned: intent.as_ref().is_some_and(|intent| demands(spec, &intent.node)),
            replaceable: controller,
            asks: asks(pod, spec, intent.as_ref().filter(|_| !gated)),
            intent,
        })
    }

    /// The request by which a node is asked for it.
    pub(super) fn request_id(&self, attempt: u32) -> String {
        Intent { node: String::new(), attempt, at: Timestamp(0) }.request_id(&self.uid)
    }

    /// `namespace/name`, for logs.
    pub(super) fn shown(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }
}

/// Whether a pod may go to this node alone: each term that can be met names it.
fn demands(spec: &core::PodSpec, node: &str) -> bool {
    let affinity = spec.affinity.as_ref().and_then(|affinity| affinity.node_affinity.as_ref());
    let required = affinity.and_then(|node| node.required_during_scheduling_ignored_during_execution.as_ref());
    let can_be_met = |term: &&core::NodeSelectorTerm| {
        [term.match_expressions.as_ref().map_or(0, Vec::len), term.match_fields.as_ref().map_or(0, Vec::len)] != [0, 0]
    };
    let is_it = |one: &core::NodeSelectorRequirement| {
        one.key == NAME && one.operator == "In" && one.values.as_ref().is_some_and(|values| values.as_slice() == [node])
    };
    let names_it = |term: &core::NodeSelectorTerm| term.match_fields.iter().flatten().any(is_it);
    let mut terms = required.iter().flat_map(|required| &required.node_selector_terms).filter(can_be_met).peekable();
    terms.peek().is_some() && terms.all(names_it)
}

fn asks(pod: &core::Pod, spec: &core::PodSpec, bound: Option<&Intent>) -> Result<Asks, String> {
    let mut build = build(pod, spec)?;
    build.scope = Some(v1::Scope {
        tenant: pod.metadata.namespace.clone().unwrap_or_default(),
        ..build.scope.unwrap_or_default()
    });
    let requests = crate::kubernetes::effective(spec, None);
    let mut declared = build.declared.unwrap_or_default();
    let more = |declared: Option<i64>, requested: u64| {
        let requested = i64::try_from(requested).unwrap_or(i64::MAX);
        Some(declared.unwrap_or(0).max(requested)).filter(|size| *size > 0)
    };
    declared.cpu_millis = more(declared.cpu_millis, requests.cpu_millis);
    declared.memory_bytes = more(declared.memory_bytes, requests.memory_bytes);
    build.declared = Some(declared);
    let part = |value: Option<i64>| value.and_then(|value| u64::try_from(value).ok()).unwrap_or(0);
    let amounts = Amounts {
        cpu_millis: part(declared.cpu_millis),
        memory_bytes: part(declared.memory_bytes),
        disk_bytes: part(declared.disk_bytes),
        disk_inodes: part(declared.disk_inodes),
    };
    let url = build.source.as_ref().and_then(|source| source.repository_url.parse::<RepositoryUrl>().ok());
    let wanted = Wanted {
        size: Wanted::size_of(amounts),
        mirror: url.map(|url| url.key().to_owned()).unwrap_or_default(),
        selector: Arc::new(selector(spec)?),
        only: bound.map(|intent| intent.node.clone()),
    };
    Ok(Asks { build: Box::new(build), wanted })
}

fn build(pod: &core::Pod, spec: &core::PodSpec) -> Result<v1::Build, String> {
    let volumes = spec.volumes.iter().flatten().filter_map(|volume| Some((&volume.name, volume.csi.as_ref()?)));
    for (name, csi) in volumes.filter(|(_, csi)| csi.driver == DRIVER) {
        let attributes = csi.volume_attributes.clone().unwrap_or_default();
        return match behind(&attributes) {
            Ok(Behind::Directory) => continue,
            // The tenant of a pod is its namespace: another would be asked for in the controller's name.
            Ok(Behind::Build(build)) if build.scope.as_ref().is_none_or(|scope| scope.tenant.is_empty()) => Ok(*build),
            Ok(Behind::Build(_)) => {
                Err(format!("volume {name}: tenant: a gated pod builds for its namespace; leave it out"))
            }
            Ok(Behind::Lease) => {
                Err(format!("volume {name}: lease: a gated pod gets its lease here; leave out one of both"))
            }
            Err(status) => Err(format!("volume {name}: {}", status.message())),
        };
    }
    let none = BTreeMap::new();
    let notes = pod.metadata.annotations.as_ref().unwrap_or(&none);
    let part = |name: &str| notes.get(name).cloned();
    let Some(repository) = part(REPOSITORY) else {
        return Err(format!(
            "it names no repository: give it a volume of driver {DRIVER}, or the annotation {REPOSITORY}"
        ));
    };
    let mut attributes = BTreeMap::from([("repository".to_owned(), repository)]);
    attributes.extend(part(REF).map(|text| ("ref".to_owned(), text)));
    match behind(&attributes).map_err(|status| format!("annotation stoker.build/{}", status.message()))? {
        Behind::Build(build) => Ok(*build),
        Behind::Lease | Behind::Directory => Err(format!("annotation {REPOSITORY}: names no build")),
    }
}

/// What it says of where it may go, unless that is more than anybody writes: it is held against thousands of nodes.
fn selector(spec: &core::PodSpec) -> Result<Selector, String> {
    let affinity = spec.affinity.as_ref().and_then(|affinity| affinity.node_affinity.as_ref());
    let required = affinity.and_then(|node| node.required_during_scheduling_ignored_during_execution.as_ref());
    let terms = || required.iter().flat_map(|required| &required.node_selector_terms);
    let all =
        || terms().flat_map(|term| term.match_expressions.iter().flatten().chain(term.match_fields.iter().flatten()));
    let values = all().map(|one| 1 + one.values.as_ref().map_or(0, Vec::len)).sum::<usize>();
    let others = spec.tolerations.as_ref().map_or(0, Vec::len) + spec.node_selector.as_ref().map_or(0, BTreeMap::len);
    let parts = terms().count() + values + others;
    if parts > SELECTOR_PARTS_MAX {
        return Err(format!(
            "its node affinity, node selector and tolerations have {parts} parts: write at most {SELECTOR_PARTS_MAX}, with a \
             label that many nodes have in place of their names"
        ));
    }
    Ok(selected(spec))
}

fn selected(spec: &core::PodSpec) -> Selector {
    let one = |(key, value): (&String, &String)| Requirement { key: key.clone(), is: Is::In(vec![value.clone()]) };
    let affinity = spec.affinity.as_ref().and_then(|affinity| affinity.node_affinity.as_ref());
    let required = affinity.and_then(|node| node.required_during_scheduling_ignored_during_execution.as_ref());
    let term = |term: &core::NodeSelectorTerm| {
        let labels = term.match_expressions.iter().flatten().map(requirement);
        // Fields are the node's name alone.
        let fields = term.match_fields.iter().flatten().map(requirement);
        let fields = fields.map(|field| Requirement { key: format!("{FIELD}{}", field.key), is: field.is });
        labels.chain(fields).collect()
    };
    let toleration = |found: &core::Toleration| Toleration {
        key: found.key.clone().unwrap_or_default(),
        value: (found.operator.as_deref() != Some("Exists")).then(|| found.value.clone().unwrap_or_default()),
        effect: found.effect.clone().unwrap_or_default(),
    };
    Selector {
        all: spec.node_selector.iter().flatten().map(one).collect(),
        any: required.map(|required| required.node_selector_terms.iter().map(term).collect()).unwrap_or_default(),
        tolerations: spec.tolerations.iter().flatten().map(toleration).collect(),
    }
}

fn requirement(found: &core::NodeSelectorRequirement) -> Requirement {
    let values = || found.values.clone().unwrap_or_default();
    let number = || values().first().and_then(|value| value.parse().ok());
    let is = match found.operator.as_str() {
        "In" => Is::In(values()),
        "NotIn" => Is::NotIn(values()),
        "Exists" => Is::Exists,
        "DoesNotExist" => Is::DoesNotExist,
        "Gt" => number().map_or(Is::Unknown, Is::Gt),
        "Lt" => number().map_or(Is::Unknown, Is::Lt),
        _ => Is::Unknown,
    };
    Requirement { key: found.key.clone(), is }
}
