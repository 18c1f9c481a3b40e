//! To be filled.

/// stub
pub fn routes(_rooms: crate::rpc::Rooms) -> axum::Router {
    axum::Router::new()
}
