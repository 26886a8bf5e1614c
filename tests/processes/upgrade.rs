//! One of several processes takes over from another one under their parent, and fails at it.

use super::renew::Renewable;
use super::*;

/// What is to happen in the next upgrade; see `os::faults`.
fn fault(server: &Renewable, fault: &str) {
    fs::write(server.path("faults"), fault).expect("written");
}

fn all_get(family: &Family, clients: &mut [Client], data: &str) {
    family.broadcast("news", data);
    clients.iter_mut().for_each(|client| assert_eq!(next(client, 1), [data]));
}

#[test]
fn a_new_process_that_dies_at_any_message_costs_nothing_before_it_has_everything() {
    let server = Renewable::start(2, &[]);
    let family = &server.family;
    let mut clients = clients_everywhere(family, 12);
    let pids = family.pids();
    let mut survived = 0;
    // Listeners, offer, two pieces of what is kept and their end, state, connections; hello, lanes, prepared, kept, have.
    for (moment, last) in [("receive", 7), ("send", 5)] {
        for number in 1.. {
            fault(&server, &format!("new {moment} {number} die"));
            let said = server.ask(&[]);
            survived += 1;
            assert_eq!(said.status, Some(1), "{moment} {number}: {said:?}");
            assert!(said.complained.contains("process 0: "), "{moment} {number}: {said:?}");
            assert_eq!(family.pids(), pids, "{moment} {number}");
            all_get(family, &mut clients, &format!("{number}"));
            // With the next one it has everything, and what becomes of it is known to it alone.
            if number == last {
                break;
            }
        }
    }
    assert_eq!(survived, 12);
    fault(&server, "");
    server.upgrade();
    all_get(family, &mut clients, "100");
    (0u16..).zip(pids).for_each(|(process, before)| _ = family.await_other_than(process, before));
}
