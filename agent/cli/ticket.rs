//! `stoker ticket`: the builds that wait.

use stoker_proto::v1;
use tonic::Status;

use super::ask::{self, Ended, Failure, PAGE, within};
use super::client::Client;
use super::table::{self as layout, Grid, Tone, View, cell};
use super::{Common, DONE, screen};

#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// All that wait, in the order of their turns
    List {
        /// Only those of this tenant; places are those in the whole queue
        #[arg(long, default_value = "", hide_default_value = true)]
        tenant: String,
    },
    /// Give a place in the queue up
    Cancel {
        /// The ticket
        #[arg(value_name = "TICKET")]
        id: String,
    },
}

pub(super) async fn run(common: &Common, command: &Command) -> u8 {
    ask::exit(obey(common, command).await)
}

async fn obey(common: &Common, command: &Command) -> Ended {
    let client = Client::of(common).await?;
    match command {
        Command::List { tenant } => ask::answer(common.output, &list(&client, tenant).await?, render)?,
        Command::Cancel { id } => {
            let request = within(ask::SOON, v1::CancelTicketRequest { ticket_id: id.clone() });
            let answer = client.admission().cancel_ticket(request).await?.into_inner();
            ask::answer(common.output, &answer, |_, _| String::new())?;
            screen::say(&format!("ticket {} is cancelled", screen::safe(id)));
        }
    }
    Ok::<u8, Failure>(DONE)
}

/// All tickets of a tenant, or of all where it has no name, from all pages.
pub(crate) async fn list(client: &Client, tenant: &str) -> Result<v1::ListTicketsResponse, Status> {
    let tickets = ask::all(|page_token| async move {
        let request = v1::ListTicketsRequest { page_size: PAGE, page_token, tenant: tenant.to_owned() };
        let request = within(ask::SOON, request);
        let page = client.admission().list_tickets(request).await?.into_inner();
        Ok((page.tickets, page.next_page_token))
    });
    Ok(v1::ListTicketsResponse { tickets: tickets.await?, next_page_token: String::new() })
}

fn render(list: &v1::ListTicketsResponse, view: &View) -> String {
    match list.tickets.is_empty() {
        true => format!("{}\n", view.paint.dim("nothing waits")),
        false => table("TICKET", &list.tickets, view),
    }
}

/// Tickets under a title, in the order of the queue.
pub(crate) fn table(title: &str, tickets: &[v1::Ticket], view: &View) -> String {
    let mut grid = Grid::new(&[title, "PLACE", "COMMIT", "FOR", "CPU", "MEMORY", "WAITS", "LIVES"]);
    grid = grid.right(&[1, 4, 5]).wraps(&[3]);
    for ticket in tickets {
        let (cpu, memory) = layout::brief_size(ticket.sizing.as_ref().and_then(|sizing| sizing.size.as_ref()));
        grid.row([
            cell(&ticket.id).tone(Tone::Bold),
            cell(ticket.position.to_string()),
            cell(layout::short_commit(&ticket.commit)),
            cell(layout::scope(ticket.scope.as_ref())),
            cell(cpu),
            cell(memory),
            cell(view.lasting(ticket.created_at.as_ref())),
            cell(view.when(ticket.expires_at.as_ref())),
        ]);
    }
    grid.render(view)
}

#[cfg(test)]
mod tests {
    use super::super::status::tests::troubled;
    use super::super::table::tests::VIEW;
    use super::*;

    #[test]
    fn names_cannot_speak_to_the_terminal() {
        let list = v1::ListTicketsResponse { tickets: troubled().tickets, ..Default::default() };
        insta::assert_snapshot!(render(&list, &VIEW), @r"
        TICKET            PLACE  COMMIT        FOR         CPU  MEMORY  WAITS  LIVES
        01k2f9s5v2w8y6zr      1  89abcdef0123  red�[31m  8 CPU  16 GiB  1 min  in 45 s
        ");
    }
}
