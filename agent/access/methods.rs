//! What each gRPC method needs. A method that is not here is not served.

use super::Role;

/// A method, and what it needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Method {
    /// `/PACKAGE.SERVICE/METHOD`.
    pub path: &'static str,
    /// The role; none: it is for everybody.
    pub role: Option<Role>,
    /// It is about the whole node: the role must be for all tenants.
    pub whole_node: bool,
    /// It changes something: it is audited.
    pub changes: bool,
}

const fn sees(path: &'static str) -> Method {
    Method { path, role: Some(Role::Viewer), whole_node: false, changes: false }
}

const fn asks(path: &'static str) -> Method {
    Method { role: Some(Role::Scheduler), ..sees(path) }
}

const fn changes(path: &'static str) -> Method {
    Method { changes: true, ..asks(path) }
}

const fn operates(path: &'static str) -> Method {
    Method { role: Some(Role::Operator), changes: true, ..sees(path) }
}

const fn whole_node(method: Method) -> Method {
    Method { whole_node: true, ..method }
}

const fn everybody(path: &'static str) -> Method {
    Method { role: None, ..sees(path) }
}

/// All there are. What belongs to a tenant, or to a trust class, is judged further on by the caller's grants.
pub const METHODS: &[Method] = &[
    sees("/stoker.v1.NodeService/GetStatus"),
    sees("/stoker.v1.NodeService/WatchStatus"),
    whole_node(operates("/stoker.v1.NodeService/SetMode")),
    whole_node(operates("/stoker.v1.NodeService/SetPool")),
    whole_node(sees("/stoker.v1.NodeService/GetPlan")),
    whole_node(sees("/stoker.v1.NodeService/Examine")),
    asks("/stoker.v1.AdmissionService/Evaluate"),
    changes("/stoker.v1.AdmissionService/Admit"),
    changes("/stoker.v1.AdmissionService/AwaitAdmission"),
    changes("/stoker.v1.AdmissionService/Bind"),
    changes("/stoker.v1.AdmissionService/Renew"),
    changes("/stoker.v1.AdmissionService/Release"),
    sees("/stoker.v1.AdmissionService/GetLease"),
    sees("/stoker.v1.AdmissionService/ListLeases"),
    sees("/stoker.v1.AdmissionService/WatchLeases"),
    sees("/stoker.v1.AdmissionService/ListTickets"),
    changes("/stoker.v1.AdmissionService/CancelTicket"),
    sees("/stoker.v1.AdmissionService/Explain"),
    sees("/stoker.v1.AdmissionService/WatchRoom"),
    asks("/stoker.v1.RepositoryService/ResolveSource"),
    sees("/stoker.v1.RepositoryService/ListRepositories"),
    sees("/stoker.v1.RepositoryService/GetRepository"),
    changes("/stoker.v1.RepositoryService/AddRepository"),
    operates("/stoker.v1.RepositoryService/RemoveRepository"),
    operates("/stoker.v1.RepositoryService/PinRepository"),
    changes("/stoker.v1.RepositoryService/RefreshRepository"),
    operates("/stoker.v1.RepositoryService/VerifyRepository"),
    operates("/stoker.v1.RepositoryService/ImportRepository"),
    operates("/stoker.v1.RepositoryService/ExportRepository"),
    changes("/stoker.v1.WorkspaceService/PrepareWorkspace"),
    sees("/stoker.v1.WorkspaceService/GetWorkspace"),
    sees("/stoker.v1.WorkspaceService/ListWorkspaces"),
    changes("/stoker.v1.WorkspaceService/DeleteWorkspace"),
    sees("/stoker.v1.WorkspaceService/GetOutput"),
    sees("/stoker.v1.WorkspaceService/ListOutputs"),
    changes("/stoker.v1.WorkspaceService/ReleaseOutput"),
    changes("/stoker.v1.WorkspaceService/DeleteOutput"),
    everybody("/grpc.health.v1.Health/Check"),
    everybody("/grpc.health.v1.Health/Watch"),
    sees("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"),
];

/// The method of a path.
#[must_use]
pub fn of(path: &str) -> Option<Method> {
    METHODS.iter().find(|method| method.path == path).copied()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use prost::Message as _;
    use prost_types::FileDescriptorSet;

    use super::*;

    fn paths(descriptor: &[u8]) -> Vec<String> {
        let set = FileDescriptorSet::decode(descriptor).unwrap();
        let services = set.file.iter().flat_map(|file| file.service.iter().map(move |service| (file, service)));
        let path = |(file, service): (&prost_types::FileDescriptorProto, &prost_types::ServiceDescriptorProto)| {
            let prefix = format!("/{}.{}", file.package(), service.name());
            service.method.iter().map(|method| format!("{prefix}/{}", method.name())).collect::<Vec<_>>()
        };
        services.flat_map(path).collect()
    }

    #[test]
    fn every_method_of_the_descriptors_has_its_need_and_no_other_is_here() {
        let mut served = paths(stoker_proto::DESCRIPTOR);
        served.extend(paths(tonic_health::pb::FILE_DESCRIPTOR_SET));
        served.push("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo".to_owned());
        let lacking: Vec<_> = served.iter().filter(|path| of(path).is_none()).collect();
        assert!(lacking.is_empty(), "say in METHODS what these need: {lacking:?}");
        let gone: Vec<_> = METHODS.iter().filter(|method| !served.iter().any(|path| path == method.path)).collect();
        assert!(gone.is_empty(), "nobody serves these: {gone:?}");
    }
}
