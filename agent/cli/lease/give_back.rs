//! What a request has at agents that it does not need any more, given back.

use std::net::SocketAddr;
use std::time::Duration;

use stoker_proto::v1;
use tonic::Code;

use super::super::ask::within;
use super::super::fleet::{self, Fleet, Has};
use super::super::{client, screen};

/// What an agent may take for it; what is left there then runs out by itself.
const WITHIN: Duration = Duration::from_secs(5);
/// How often an agent is looked at that was asked and did not answer before it was left: what it decides, it decides soon.
const LOOKS_MAX: u32 = 5;
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// At all these agents, at once. Each is named with whether it has answered the request.
pub(super) async fn everywhere(fleet: &Fleet<'_>, request_id: &str, at: impl IntoIterator<Item = (SocketAddr, bool)>) {
    let each = at.into_iter().map(|(address, answered)| async move {
        let given = tokio::time::timeout(WITHIN, give_back(fleet, request_id, address, answered)).await;
        let why = match given {
            Ok(Ok(())) => return,
            Ok(Err(why)) => why,
            Err(_) => format!("nothing within {} s", WITHIN.as_secs()),
        };
        screen::say(&format!("what {address} has of request {request_id} runs out by itself: {why}"));
    });
    futures_util::future::join_all(each).await;
}

/// The ticket, or the lease that a grant made of it meanwhile. One that is bound has a build, and is nobody's to end.
async fn give_back(fleet: &Fleet<'_>, request_id: &str, address: SocketAddr, answered: bool) -> Result<(), String> {
    let client = fleet.client(address).await.map_err(|error| format!("{error:#}"))?;
    let mut admission = client.admission();
    for look in 1..=LOOKS_MAX {
        let ended = match fleet::has(&client, request_id).await.map_err(|status| client::words(&status))? {
            Has::Nothing if answered || look == LOOKS_MAX => return Ok(()),
            Has::Nothing => {
                tokio::time::sleep(LOOK_EVERY).await;
                continue;
            }
            Has::Ticket(ticket_id) => {
                let request = within(WITHIN, v1::CancelTicketRequest { ticket_id });
                admission.cancel_ticket(request).await.map(|_| ())
            }
            Has::Lease(lease) if lease.state() == v1::LeaseState::Reserved => {
                let lost = v1::ReleaseRequest {
                    lease_id: lease.id,
                    outcome: v1::Outcome::Lost.into(),
                    ..v1::ReleaseRequest::default()
                };
                admission.release(within(WITHIN, lost)).await.map(|_| ())
            }
            Has::Lease(_) => return Ok(()),
        };
        match ended {
            Ok(()) => return Ok(()),
            // It was granted, or ran out, since the look.
            Err(status) if status.code() == Code::NotFound => {}
            Err(status) => return Err(client::words(&status)),
        }
    }
    Err(format!("it changed {LOOKS_MAX} times while it was looked at"))
}
