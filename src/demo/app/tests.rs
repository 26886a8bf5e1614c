//! The app as Cableway sees it: calls in, answers and broadcasts out.

use serde_json::Value;
use tokio::sync::mpsc::Receiver;

use super::*;

const CHAT: &str = r#"{"channel":"ChatChannel","room":"lobby"}"#;

fn app(waiting_max: usize) -> (App, Receiver<String>) {
    let (queue, told) = mpsc::channel(waiting_max);
    (App::new(queue, Clock::start()), told)
}

fn value(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

async fn connect(app: &App, sid: &str, url: &str) -> ConnectionResponse {
    let env = Env { url: url.to_owned(), ..Env::default() };
    let mut request = Request::new(ConnectionRequest { env: Some(env) });
    request.metadata_mut().insert("sid", sid.parse().unwrap());
    app.connect(request).await.unwrap()
}

async fn command(app: &App, identifiers: &str, command: &str, identifier: &str, data: &str) -> CommandResponse {
    let call = CommandMessage {
        command: command.to_owned(),
        identifier: identifier.to_owned(),
        connection_identifiers: identifiers.to_owned(),
        data: data.to_owned(),
        env: None,
    };
    app.command(Request::new(call)).await.unwrap()
}

#[tokio::test]
async fn everybody_may_connect_and_is_somebody_else() {
    let (app, _told) = app(8);
    let ada = connect(&app, "s1", "http://localhost/cable?pi=3&who=tab7").await;
    assert_eq!(ada.status, Verdict::Success as i32);
    assert_eq!(ada.transmissions, [r#"{"sid":"s1","type":"welcome"}"#]);
    assert_eq!(value(&ada.identifiers), json!({"sid": "s1", "who": "tab7"}));
    for url in ["http://localhost/cable", "http://localhost/cable?who=", "http://localhost/cable?who=%22"] {
        assert_eq!(value(&connect(&app, "s2", url).await.identifiers), json!({"sid": "s2", "who": "s2"}), "{url}");
    }
    let long = format!("http://localhost/?who={}", "x".repeat(WHO_CHARS_MAX + 1));
    assert_eq!(value(&connect(&app, "s3", &long).await.identifiers)["who"], "s3");
}

#[tokio::test]
async fn a_subscriber_may_whisper_and_be_present_and_what_it_says_is_told() {
    let (app, mut told) = app(8);
    let ada = connect(&app, "s1", "http://localhost/cable?who=ada").await.identifiers;
    let subscribed = command(&app, &ada, "subscribe", CHAT, "").await;
    assert_eq!((subscribed.status, &subscribed.streams[..]), (Verdict::Success as i32, &[STREAM.to_owned()][..]));
    assert_eq!(subscribed.transmissions.len(), 1);
    assert_eq!(value(&subscribed.transmissions[0]), json!({"type": "confirm_subscription", "identifier": CHAT}));
    let istate = subscribed.env.unwrap().istate;
    assert_eq!((istate["$w"].as_str(), istate["$p"].as_str()), (STREAM, STREAM));

    let said = command(&app, &ada, "message", CHAT, r#"{"action":"say","name":"Ada","text":"hi"}"#).await;
    assert_eq!((said.status, said.transmissions.len()), (Verdict::Success as i32, 0));
    let line = value(&told.recv().await.unwrap());
    assert_eq!((&line["who"], &line["name"], &line["text"]), (&"ada".into(), &"Ada".into(), &"hi".into()));
}

#[tokio::test(start_paused = true)]
async fn the_clock_talks_once_at_a_time() {
    let (app, mut told) = app(16);
    tokio::join!(app.tick(), app.tick());
    for tick in 1..=TICKS {
        assert_eq!(value(&told.recv().await.unwrap())["text"], format!("tick {tick} of {TICKS}"));
    }
    assert!(told.try_recv().is_err());
    app.tick().await;
    assert_eq!(value(&told.recv().await.unwrap())["who"], "clock");
}

#[tokio::test]
async fn an_idle_client_hears_the_room_and_may_say_nothing() {
    let (app, _told) = app(8);
    let idle = r#"{"channel":"IdleChannel"}"#;
    let one = connect(&app, "s1", "http://localhost/cable").await.identifiers;
    let answer = command(&app, &one, "subscribe", idle, "").await;
    assert_eq!((&answer.streams[..], answer.transmissions.len()), (&[STREAM.to_owned()][..], 1));
    assert_eq!(answer.env, None);
    let answer = command(&app, &one, "message", idle, r#"{"action":"say","name":"A","text":"b"}"#).await;
    assert_eq!(answer.status, Verdict::Error as i32);
}

#[tokio::test]
async fn unknown_channels_are_rejected_and_unknown_actions_are_errors() {
    let (app, _told) = app(8);
    let ada = connect(&app, "s1", "http://localhost/cable?who=ada").await.identifiers;
    for channel in ["", "[]", r#"{"channel":"Other"}"#, r#"{"channel":"ChatChannel","room":"attic"}"#] {
        let answer = command(&app, &ada, "subscribe", channel, "").await;
        assert_eq!((answer.status, answer.streams.len()), (Verdict::Failure as i32, 0), "{channel}");
        let rejection = json!({"type": "reject_subscription", "identifier": channel});
        assert_eq!(value(&answer.transmissions[0]), rejection, "{channel}");
    }
    for data in ["", "7", r#"{"action":"fly"}"#, r#"{"action":"say","text":7,"name":"Ada"}"#] {
        let answer = command(&app, &ada, "message", CHAT, data).await;
        assert_eq!((answer.status, answer.transmissions.len()), (Verdict::Error as i32, 0), "{data}");
    }
}

#[tokio::test]
async fn while_the_queue_is_full_nothing_is_said_and_the_speaker_is_told() {
    let (app, mut told) = app(1);
    let ada = connect(&app, "s1", "http://localhost/cable?who=ada").await.identifiers;
    let say = |text: &str| json!({ "action": "say", "name": "Ada", "text": text }).to_string();
    assert!(command(&app, &ada, "message", CHAT, &say("one")).await.transmissions.is_empty());
    let busy = command(&app, &ada, "message", CHAT, &say("two")).await;
    assert_eq!(value(&busy.transmissions[0])["message"], json!({"type": "refused", "text": Refused::Busy.to_string()}));
    assert_eq!(value(&told.recv().await.unwrap())["text"], "one");
    assert!(command(&app, &ada, "message", CHAT, &say("three")).await.transmissions.is_empty());
    assert_eq!(value(&told.recv().await.unwrap())["text"], "three");
}
