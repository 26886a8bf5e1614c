use std::sync::mpsc;
use std::thread;

use super::*;
use crate::broker::{Departure, Place, Resumption, SWEEPS};
use crate::model::{Admission, ResumeTicket, SavedSession, SlotKey, State};

pub(super) fn at(seconds: u64) -> Now {
    Now { mono: Duration::from_secs(seconds), unix: Duration::from_secs(1_790_000_000 + seconds) }
}

pub(super) fn settings() -> MemorySettings {
    MemorySettings {
        epoch: "e".into(),
        history_limit: 3,
        history_ttl: Duration::from_secs(300),
        history_bytes_max: 1 << 20,
        presence_ttl: Duration::from_secs(15),
        presence_bytes_max: 1 << 20,
        sessions: SessionsSettings { ttl: Duration::from_secs(300), bytes_max: 1 << 20 },
    }
}

fn memory() -> LocalBroker {
    LocalBroker::new(Some(settings()))
}

fn publish(broker: &LocalBroker, stream: &str, message: u64, seconds: u64) -> Option<u64> {
    let publication = Publication::new(stream, message.to_string());
    broker.in_order(publication, at(seconds), |publication| publication.position).map(|position| position.offset)
}

/// The messages that a client gets who has them up to `offset`.
fn after(broker: &LocalBroker, stream: &str, epoch: &str, offset: u64) -> Result<(u64, Vec<String>), BrokerError> {
    let positions = vec![(stream.into(), Position { epoch: epoch.into(), offset })];
    missed(broker, stream, HistoryRequest { since: 0, positions }, 10)
}

fn missed(
    broker: &LocalBroker,
    stream: &str,
    since: HistoryRequest,
    seconds: u64,
) -> Result<(u64, Vec<String>), BrokerError> {
    let BrokerReply::History(missed) = broker.history(&[stream.into()], &since, at(seconds))? else { panic!() };
    let Missed { had, publications, .. } = &missed[0];
    Ok((*had, publications.iter().map(|publication| publication.message.to_string()).collect()))
}

#[test]
fn a_publication_waits_for_the_one_before_it_in_its_stream_and_for_no_other_stream() {
    // Aim: order is kept for each stream, and a slow hand-over holds up its own stream only. The first hand-over is
    // kept open while a second thread publishes to the same stream and this one to another.
    let broker = LocalBroker::default();
    let other = (0..).map(|n| format!("other:{n}"));
    let mut other = other.filter(|name| !std::ptr::eq(broker.stripe_of(name), broker.stripe_of("s")));
    let other = other.next().unwrap();
    let (done, order) = mpsc::channel();
    let to = |stream: &str| Publication::new(stream, "1");
    thread::scope(|scope| {
        let (entered, has_entered) = mpsc::channel();
        let (leave, may_leave) = mpsc::channel::<()>();
        let (broker, first, second) = (&broker, done.clone(), done.clone());
        scope.spawn(move || {
            broker.in_order(to("s"), at(0), |_| {
                entered.send(()).unwrap();
                may_leave.recv().unwrap();
                first.send("first").unwrap();
            });
        });
        has_entered.recv().unwrap();
        assert!(broker.stripe_of("s").try_lock().is_err());
        scope.spawn(move || broker.in_order(to("s"), at(0), |_| second.send("second").unwrap()));
        broker.in_order(to(&other), at(0), |_| done.send("other").unwrap());
        leave.send(()).unwrap();
    });
    assert_eq!(order.iter().take(3).collect::<Vec<_>>(), ["other", "first", "second"]);
}

#[test]
fn names_are_spread_over_the_locks() {
    let broker = LocalBroker::default();
    let mut used: Vec<_> = (0..4096).map(|n| std::ptr::from_ref(broker.stripe_of(&format!("room:{n}")))).collect();
    used.sort_unstable();
    used.dedup();
    assert_eq!(used.len(), STRIPES);
}

#[test]
fn without_memory_nothing_gets_a_position_and_every_question_is_answered() {
    let broker = LocalBroker::default();
    assert_eq!(publish(&broker, "s", 1, 0), None);
    assert_eq!(after(&broker, "s", "e", 1), Err(BrokerError::NotKept));
    assert_eq!(broker.present("s", true, 100), Err(BrokerError::NotKept));
    assert!(broker.sessions().is_none());
}

#[test]
fn what_is_stored_has_a_position_and_what_is_transient_has_none() {
    let broker = memory();
    assert_eq!(
        (publish(&broker, "a", 1, 0), publish(&broker, "b", 2, 0), publish(&broker, "a", 3, 0)),
        (Some(1), Some(1), Some(2))
    );
    let transient = Publication { transient: true, ..Publication::new("a", "4") };
    assert_eq!(broker.in_order(transient, at(0), |publication| publication.position), None);
    assert_eq!(publish(&broker, "a", 5, 0), Some(3));
    assert_eq!(after(&broker, "a", "e", 1), Ok((1, vec!["3".into(), "5".into()])));
}

#[test]
fn history_is_all_or_nothing() {
    let broker = memory();
    (1..=5).for_each(|n| {
        publish(&broker, "s", n, n);
    });
    publish(&broker, "other", 1, 0);
    let ask = |epoch, offset| after(&broker, "s", epoch, offset);
    assert_eq!(ask("e", 5), Ok((5, vec![])), "nothing was missed");
    assert_eq!(ask("e", 2), Ok((2, vec!["3".into(), "4".into(), "5".into()])), "the oldest kept is the next one");
    for (epoch, offset) in [("e", 1), ("e", 6), ("e", 0), ("another", 4), ("", 4)] {
        assert_eq!(ask(epoch, offset), Err(BrokerError::Gone), "{epoch} {offset}");
    }
    assert_eq!(after(&broker, "unknown", "e", 1), Err(BrokerError::Gone));
    // One stream that is not all there takes the others along.
    let positions = |offset| vec![("s".into(), Position { epoch: "e".into(), offset })];
    let both: [Box<str>; 2] = ["other".into(), "s".into()];
    let both = |offset| broker.history(&both, &HistoryRequest { since: 1, positions: positions(offset) }, at(10));
    assert!(matches!(both(4), Ok(BrokerReply::History(missed)) if missed.len() == 2));
    assert_eq!(both(1), Err(BrokerError::Gone));
    // By time, whole seconds inclusive. An entry wins over it, and time in the future covers nothing.
    let since = |since| missed(&broker, "s", HistoryRequest { since, positions: Vec::new() }, 10);
    assert_eq!(since(1_790_000_004), Ok((0, vec!["4".into(), "5".into()])));
    assert_eq!((since(1_790_000_011), since(0)), (Ok((0, vec![])), Ok((0, vec![]))));
    let request = HistoryRequest { since: 1, positions: positions(1) };
    assert_eq!(missed(&broker, "s", request, 10), Err(BrokerError::Gone));
    assert_eq!((broker.metrics.history_served_total.get(), broker.metrics.history_rejected_total.get()), (6, 8));
}

fn saved(sid: Sid, admission: Admission) -> Option<Box<SavedSession>> {
    Some(Box::new(SavedSession {
        sid,
        saved_at: 0,
        identifiers: "me".into(),
        admission,
        cstate: State::default(),
        subscriptions: Vec::new(),
        disconnectable: true,
    }))
}

const ME: Sid = Sid::from_bits(1);
const NEWCOMER: SlotKey = SlotKey { shard: 1, index: 2, generation: 3 };

fn ticket(identifiers: Option<&str>) -> ResumeTicket {
    ResumeTicket { sid: ME, identifiers: identifiers.map(Into::into) }
}

/// Whether a client with this ticket gets the session at this moment.
fn resumes(broker: &LocalBroker, identifiers: Option<&str>, seconds: u64) -> bool {
    match broker.sessions().unwrap().resume(ticket(identifiers), NEWCOMER, at(seconds), &broker.metrics) {
        Resumption::Now(saved) => saved.is_some(),
        Resumption::AfterYield(..) => panic!("it lives"),
    }
}

fn depart(broker: &LocalBroker, admission: Admission, seconds: u64) -> Option<Departure> {
    broker.sessions().unwrap().departed(ME, saved(ME, admission), at(seconds), &broker.metrics)
}

#[test]
fn a_session_is_given_back_once_and_within_its_time() {
    let broker = memory();
    assert!(!resumes(&broker, Some("me"), 0), "never heard of");
    assert_eq!(depart(&broker, Admission::Token, 10), None);
    assert!(resumes(&broker, Some("me"), 310));
    assert!(!resumes(&broker, Some("me"), 310), "once");
    depart(&broker, Admission::Token, 10);
    assert!(!resumes(&broker, Some("me"), 311), "too late, though nobody has swept");
    (0..SWEEPS).for_each(|part| broker.sweep(part, at(400), |_| panic!("nobody was present")));
    let amounts = broker.sessions().unwrap().measure();
    assert_eq!((amounts.saved, amounts.bytes), (0, 0));
    assert_eq!((broker.metrics.sessions_resumed_total.get(), broker.metrics.sessions_refused_total.get()), (1, 3));
}

#[test]
fn a_client_that_comes_and_goes_all_the_time_leaves_nothing_behind() {
    let broker = memory();
    for n in 0..100_000 {
        assert_eq!(depart(&broker, Admission::Token, n / 400), None);
        assert!(resumes(&broker, Some("me"), n / 400));
    }
    let places = broker.sessions().unwrap().places();
    assert!(places < 2000, "{places} places for nobody");
}

#[test]
fn a_session_is_given_only_to_whoever_is_still_let_in_as_it_was() {
    let broker = memory();
    for (admission, shown, gets) in [
        (Admission::Token, Some("me"), true),
        (Admission::Token, Some("somebody"), false),
        (Admission::Token, None, false),
        (Admission::App, None, true),
        (Admission::App, Some("me"), false),
        (Admission::Open, None, true),
        (Admission::No, None, false),
    ] {
        depart(&broker, admission, 0);
        assert_eq!(resumes(&broker, shown, 1), gets, "{admission:?} {shown:?}");
    }
}

#[test]
fn who_was_sent_away_does_not_come_back_to_a_session() {
    let broker = memory();
    let sessions = broker.sessions().unwrap();
    depart(&broker, Admission::Token, 10);
    sessions.send_away("somebody", at(11));
    sessions.send_away("me", at(20));
    assert!(!resumes(&broker, Some("me"), 21));
    depart(&broker, Admission::Token, 24);
    assert!(!resumes(&broker, Some("me"), 25), "the shard may not have heard of it when the session was saved");
    depart(&broker, Admission::Token, 26);
    assert!(resumes(&broker, Some("me"), 27), "a session of later");
    // One that was found before and has not been let in yet.
    let found = SavedSession { saved_at: 26, ..*saved(ME, Admission::Token).unwrap() };
    assert!(sessions.may_go_on(&found));
    sessions.send_away("me", at(28));
    assert!(!sessions.may_go_on(&found));
    // What is known of it is forgotten when no session of then can be there any more.
    (0..SWEEPS).for_each(|part| broker.sweep(part, at(1_000), |_| ()));
    assert!(sessions.may_go_on(&SavedSession { saved_at: 0, ..found }));
}

#[test]
fn a_session_that_still_lives_is_taken_over_by_the_first_who_may_have_it() {
    let broker = memory();
    let sessions = broker.sessions().unwrap();
    let (here, there) = (Place { shard: 4, index: 5 }, Place { shard: 6, index: 7 });
    sessions.resident(ME, here);
    let ask = |key| sessions.resume(ticket(Some("me")), key, at(1), &broker.metrics);
    assert_eq!(ask(NEWCOMER), Resumption::AfterYield(here, ticket(Some("me"))));
    assert_eq!(ask(SlotKey { index: 9, ..NEWCOMER }), Resumption::Now(None), "somebody else was first");
    // It has moved meanwhile.
    assert_eq!(sessions.moved(ME, here), None);
    sessions.resident(ME, there);
    assert_eq!(sessions.moved(ME, here), Some((there, ticket(Some("me")))));
    let departure = depart(&broker, Admission::Token, 2).unwrap();
    assert_eq!((departure.key, departure.saved.is_some()), (NEWCOMER, true));
    assert!(!resumes(&broker, Some("me"), 3), "it was given away");
    // Whoever has it says no, or has ended it for good.
    let stays = || sessions.stays(ME, &broker.metrics);
    let ends = || sessions.departed(ME, None, at(5), &broker.metrics);
    for answer in [&stays as &dyn Fn() -> Option<Departure>, &ends] {
        sessions.resident(ME, here);
        ask(NEWCOMER);
        assert_eq!(answer(), Some(Departure { key: NEWCOMER, saved: None }));
        ends();
    }
    assert_eq!(sessions.stays(ME, &broker.metrics), None);
}

#[test]
fn kept_sessions_are_bounded_and_the_oldest_go_first() {
    let broker = LocalBroker::new(memory().memory.map(|memory| MemorySettings {
        sessions: SessionsSettings { ttl: Duration::from_secs(300), bytes_max: 10_000 },
        ..memory.settings
    }));
    let sessions = broker.sessions().unwrap();
    for n in 0..10_000u128 {
        let sid = Sid::from_bits(n);
        sessions.departed(sid, saved(sid, Admission::App), at(n as u64 / 100), &broker.metrics);
    }
    let amounts = sessions.measure();
    assert!(amounts.bytes <= 10_000 && amounts.saved > 10, "{} {}", amounts.saved, amounts.bytes);
    assert_eq!(broker.metrics.sessions_evicted_total.get() as usize + amounts.saved, 10_000);
}

#[test]
fn who_comes_and_goes_is_told_to_the_stream_and_a_short_absence_is_not() {
    let broker = memory();
    let change = |sid: u128, change, seconds| {
        let mut told = Vec::new();
        broker.change_presence("s", Sid::from_bits(sid), change, at(seconds), |event| {
            assert_eq!((event.kind.as_deref(), event.transient), (Some("presence"), true));
            told.push(event.message.to_string());
        });
        told.concat()
    };
    let join = || PresenceChange::Join { id: "42".into(), info: Some("{}".into()) };
    assert_eq!(change(1, join(), 0), r#"{"id":"42","info":{},"type":"join"}"#);
    assert_eq!(change(2, join(), 0), "", "the same id again");
    let info = |records| String::from_utf8(broker.present("s", records, 100).unwrap()).unwrap();
    assert_eq!(info(true), r#"{"type":"info","total":1,"records":[{"info":{},"id":"42"}]}"#);
    assert_eq!(info(false), r#"{"type":"info","total":1}"#);
    assert_eq!(broker.present("s", true, 50).unwrap(), br#"{"type":"info","total":1}"#, "too long with records");
    assert_eq!(change(1, PresenceChange::Leave, 0), "");
    assert_eq!(change(2, PresenceChange::Gone, 100), "");
    let sweep = |seconds| {
        let mut told = Vec::new();
        (0..SWEEPS).for_each(|part| broker.sweep(part, at(seconds), |event| told.push(event.message.to_string())));
        told.concat()
    };
    assert_eq!(sweep(110), "");
    assert_eq!(change(3, join(), 110), "", "back in time, on another connection");
    assert_eq!(sweep(200), "");
    assert_eq!(change(3, PresenceChange::Gone, 200), "");
    assert_eq!(sweep(216), r#"{"id":"42","type":"leave"}"#);
    assert_eq!(info(true), r#"{"type":"info","total":0}"#);
}
