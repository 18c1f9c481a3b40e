//! The journal's tables, without a disk: the last record of each thing is all that is kept.

use super::*;

#[derive(Default)]
pub(super) struct Journal {
    leases: BTreeMap<LeaseId, Arc<Lease>>,
    tickets: BTreeMap<TicketId, Arc<Ticket>>,
    mode: Option<ModeState>,
}

impl Journal {
    pub(super) fn write(&mut self, event: &Event) {
        match event.clone() {
            Event::Lease(lease) => drop(self.leases.insert(lease.id.clone(), lease)),
            Event::Forgotten(id) => drop(self.leases.remove(&id)),
            Event::Ticket(ticket) => drop(self.tickets.insert(ticket.id.clone(), ticket)),
            Event::TicketGone(id) => drop(self.tickets.remove(&id)),
            Event::Mode(mode) => self.mode = Some(mode),
        }
    }

    /// The ledger, as one that starts reads it back.
    pub(super) fn read(&self) -> Ledger {
        let mut ledger = Ledger::default();
        self.leases.values().cloned().map(Event::Lease).for_each(|event| ledger.apply(event));
        let mut tickets: Vec<_> = self.tickets.values().cloned().collect();
        tickets.sort_by_key(|ticket| ticket.order);
        tickets.into_iter().map(Event::Ticket).for_each(|event| ledger.apply(event));
        self.mode.iter().cloned().map(Event::Mode).for_each(|event| ledger.apply(event));
        ledger
    }
}

#[test]
fn a_ledger_that_is_read_back_is_the_one_that_was_lived_through() {
    let mut node = Node::new();
    let first = node.running(request("first", 20, 40), "a");
    let second = node.granted(request("second", 2, 4));
    node.waiting(request("third", 2, 40));
    node.waiting(request("fourth", 2, 40));
    node.release(&second);
    node.tell(&Command::SetMode(ModeState {
        mode: Mode::Maintenance,
        note: String::from("disk"),
        ..ModeState::default()
    }));
    node.pass(Span::seconds(1));
    assert_eq!(node.twin.read(), node.ledger);
    assert_eq!(node.twin.read().lease_of(&request_id("first")).unwrap().id, first);
    assert_eq!(node.queued(), ["third", "fourth"]);
}
