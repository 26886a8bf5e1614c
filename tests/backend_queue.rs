//! Concurrency, order, bounds, cancelling and the Disconnect queue, against a real gRPC server whose answers the test
//! gives by hand.

mod backend_app;

use std::sync::Arc;
use std::time::Duration;

use backend_app::*;
use cableway::backend::{Backend, DrainReport, Settings, Target};
use cableway::model::CallError;
use tokio::time::Instant;

fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

#[tokio::test(start_paused = true)]
async fn exactly_as_many_calls_run_as_permitted_and_the_others_follow_in_order() {
    let mut app = Server::start().await;
    let mut caller = Caller::new(Settings { concurrency: 3, ..to(&app) });
    for index in 0..50 {
        caller.backend.submit(command(index)).unwrap();
    }
    let mut running = std::collections::VecDeque::new();
    for index in 0..50u32 {
        if running.len() < 3 {
            running.push_back(app.next().await);
        }
        if running.len() == 3 {
            settle().await;
            assert!(app.quiet(), "a fourth call runs");
            assert_eq!(caller.backend.metrics().rpc_pending_num.get(), i64::from(50 - index - 1));
            let first = running.pop_front().unwrap();
            assert_eq!(first.name(), (index - 2).to_string());
            first.succeed();
            caller.answer().await;
        }
    }
    assert_eq!(running.len(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_call_keeps_its_place_while_it_waits_for_a_retry() {
    let mut app = Server::start().await;
    let mut caller = Caller::new(Settings { concurrency: 1, ..to(&app) });
    caller.backend.submit(command(0)).unwrap();
    caller.backend.submit(command(1)).unwrap();
    app.next().await.fail(tonic::Code::Unavailable);
    let again = app.next().await;
    assert_eq!(again.name(), "0");
    again.succeed();
    assert_eq!(caller.answer().await.key, key(0));
    assert_eq!(app.next().await.name(), "1");
}

#[tokio::test(start_paused = true)]
async fn a_full_queue_refuses_the_next_call_at_once() {
    let mut app = Server::start().await;
    let mut caller = Caller::new(Settings { concurrency: 2, queue_max: 3, ..to(&app) });
    // Two will run and three wait, whether or not the driver has had its turn.
    for index in 0..5 {
        caller.backend.submit(command(index)).unwrap();
    }
    assert_eq!(caller.backend.submit(command(5)), Err(CallError::Overloaded));
    settle().await;
    assert_eq!(caller.backend.submit(command(5)), Err(CallError::Overloaded));
    assert_eq!(caller.backend.metrics().rpc_pending_num.get(), 3);
    assert_eq!(caller.backend.metrics().rpc_overloaded_total.get(), 2);
    app.next().await.succeed();
    caller.answer().await;
    caller.backend.submit(command(6)).unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_call_that_waited_too_long_is_refused_while_later_ones_go_on_waiting() {
    let mut app = Server::start().await;
    let settings = Settings { concurrency: 1, command_timeout: secs(60), ..to(&app) };
    let mut caller = Caller::new(settings);
    let start = Instant::now();
    caller.backend.submit(command(0)).unwrap();
    let running = app.next().await;
    caller.backend.submit(command(1)).unwrap();
    tokio::time::sleep(secs(1)).await;
    caller.backend.submit(command(2)).unwrap();
    let refused = caller.answer().await;
    assert_eq!((refused.key, refused.result), (key(1), Err(CallError::Overloaded)));
    assert!(start.elapsed() >= secs(5) && start.elapsed() < secs(5) + Duration::from_millis(20));
    running.succeed();
    assert_eq!(caller.answer().await.key, key(0));
    assert_eq!(app.next().await.name(), "2");
    assert_eq!(caller.backend.metrics().rpc_pending_num.get(), 0);
}

#[tokio::test(start_paused = true)]
async fn the_command_deadline_starts_when_the_call_starts_and_not_while_it_waits() {
    let mut app = Server::start().await;
    let mut caller = Caller::new(Settings { concurrency: 1, ..to(&app) });
    caller.backend.submit(command(0)).unwrap();
    caller.backend.submit(command(1)).unwrap();
    let first = app.next().await;
    tokio::time::sleep(secs(2)).await;
    first.succeed();
    let second = app.next().await;
    tokio::time::sleep(secs(2)).await;
    second.succeed();
    for _ in 0..2 {
        assert!(caller.answer().await.result.is_ok());
    }
}

#[tokio::test(start_paused = true)]
async fn canceled_calls_that_wait_are_forgotten_and_counted() {
    let mut app = Server::start().await;
    let mut caller = Caller::new(Settings { concurrency: 1, ..to(&app) });
    for index in 0..3 {
        caller.backend.submit(command(index)).unwrap();
    }
    let running = app.next().await;
    caller.backend.cancel(key(1));
    caller.backend.cancel(key(99));
    settle().await;
    assert_eq!(caller.backend.metrics().rpc_canceled_total.get(), 1);
    assert_eq!(caller.backend.metrics().rpc_pending_num.get(), 1);
    running.succeed();
    assert_eq!(caller.answer().await.key, key(0));
    let next = app.next().await;
    assert_eq!(next.name(), "2");
    next.succeed();
    assert_eq!(caller.answer().await.key, key(2));
}

#[tokio::test(start_paused = true)]
async fn a_call_that_is_canceled_before_it_was_started_never_reaches_the_app() {
    let mut app = Server::start().await;
    let caller = Caller::to(&app);
    caller.backend.submit(command(1)).unwrap();
    caller.backend.submit(command(2)).unwrap();
    caller.backend.cancel(key(1));
    assert_eq!(app.next().await.name(), "2");
    settle().await;
    assert!(app.quiet());
    assert_eq!(caller.backend.metrics().rpc_canceled_total.get(), 1);
}

#[tokio::test(start_paused = true)]
async fn disconnect_calls_are_never_canceled_and_run_beside_the_canceled_command() {
    let mut app = Server::start().await;
    let caller = Caller::to(&app);
    caller.backend.submit(command(1)).unwrap();
    let running = app.next().await;
    caller.backend.cancel(key(1));
    caller.backend.disconnect(disconnect(1)).unwrap();
    running.given_up().await;
    let asked = app.next().await;
    caller.backend.cancel(key(1));
    settle().await;
    asked.succeed();
    assert_eq!(caller.backend.drain(Instant::now() + secs(5)).await, DrainReport { sent: 1, failed: 0, left: 0 });
}

#[tokio::test(start_paused = true)]
async fn disconnect_calls_start_in_order_and_no_faster_than_the_rate() {
    let mut app = Server::start().await;
    let caller = Caller::new(Settings { disconnect_rate: 10, ..to(&app) });
    for index in 0..20 {
        caller.backend.disconnect(disconnect(index)).unwrap();
    }
    let start = Instant::now();
    let mut running = Vec::new();
    for index in 0..10u32 {
        let asked = app.next().await;
        assert_eq!(asked.name(), index.to_string());
        let due = Duration::from_millis(100) * index;
        assert!(start.elapsed() + Duration::from_millis(3) >= due, "{index} at {:?}", start.elapsed());
        assert!(start.elapsed() <= due + Duration::from_millis(50), "{index} at {:?}", start.elapsed());
        assert!(app.quiet(), "two at once");
        // Some take longer than the rate gives.
        running.push(asked);
        if running.len() == 3 {
            running.drain(..).for_each(Asked::succeed);
        }
    }
    assert_eq!(caller.backend.metrics().disconnect_queue_size.get(), 10);
}

#[tokio::test(start_paused = true)]
async fn a_disconnect_that_takes_long_does_not_hold_up_the_others_and_a_few_run_at_a_time() {
    let mut app = Server::start().await;
    let caller = Caller::new(Settings { disconnect_rate: 0, command_timeout: secs(60), ..to(&app) });
    for index in 0..20 {
        caller.backend.disconnect(disconnect(index)).unwrap();
    }
    let slow = app.next().await;
    let mut others = Vec::new();
    for _ in 0..3 {
        others.push(app.next().await);
    }
    settle().await;
    assert!(app.quiet(), "a fifth");
    others.into_iter().for_each(Asked::succeed);
    for _ in 4..20 {
        app.next().await.succeed();
    }
    assert_eq!(slow.name(), "0");
    slow.succeed();
    assert_eq!(caller.backend.drain(Instant::now() + secs(5)).await, DrainReport { sent: 20, failed: 0, left: 0 });
}

#[tokio::test(start_paused = true)]
async fn what_can_never_pass_is_not_tried_again_and_what_may_pass_is() {
    let mut app = Server::start().await;
    let caller = Caller::to(&app);
    for (code, message, tries_again) in [
        (tonic::Code::ResourceExhausted, "grpc: received message larger than max (4718592 vs. 4194304)", false),
        (tonic::Code::ResourceExhausted, "SERVER: Received message larger than max (5 vs. 4)", false),
        (tonic::Code::InvalidArgument, "", false),
        (tonic::Code::Unimplemented, "", false),
        (tonic::Code::Unauthenticated, "", false),
        (tonic::Code::Internal, "", false),
        (tonic::Code::ResourceExhausted, "no thread is free", true),
        (tonic::Code::Unavailable, "", true),
    ] {
        caller.backend.disconnect(disconnect(0)).unwrap();
        app.next().await.refuse(code, message);
        if tries_again {
            // More often than one call lasts.
            for _ in 0..20 {
                app.next().await.refuse(code, message);
            }
            app.next().await.succeed();
        }
        tokio::time::sleep(secs(10)).await;
        assert!(app.quiet(), "{code:?} {message}");
    }
    assert_eq!(caller.backend.drain(Instant::now() + secs(5)).await, DrainReport { sent: 2, failed: 6, left: 0 });
}

#[tokio::test(start_paused = true)]
async fn a_disconnect_that_fails_again_and_again_while_others_pass_is_given_up() {
    let mut app = Server::start().await;
    let caller = Caller::new(Settings { disconnect_rate: 5, ..to(&app) });
    caller.backend.disconnect(disconnect(0)).unwrap();
    for index in 1..200 {
        caller.backend.disconnect(disconnect(index)).unwrap();
        let asked = loop {
            let asked = app.next().await;
            match asked.name() {
                "0" => asked.refuse(tonic::Code::Unavailable, ""),
                _ => break asked,
            }
        };
        asked.succeed();
    }
    tokio::time::sleep(secs(60)).await;
    assert!(app.quiet());
    assert_eq!(caller.backend.drain(Instant::now() + secs(5)).await, DrainReport { sent: 199, failed: 1, left: 0 });
}

#[tokio::test(start_paused = true)]
async fn a_disconnect_over_the_usual_limit_of_grpc_is_too_large_whatever_the_app_calls_it() {
    let mut app = Server::start().await;
    let caller = Caller::to(&app);
    let mut large = disconnect(0);
    let cableway::model::Request::Disconnect { env, .. } = &mut large.request else { unreachable!() };
    *env = env.with_identifiers(&"x".repeat(4_500_000));
    caller.backend.disconnect(large).unwrap();
    // The test's server takes 4 MiB, as nearly all do, and says so in its own words.
    tokio::time::sleep(secs(20)).await;
    assert!(app.quiet());
    caller.backend.disconnect(disconnect(1)).unwrap();
    app.next().await.succeed();
    assert_eq!(caller.backend.drain(Instant::now() + secs(5)).await, DrainReport { sent: 1, failed: 1, left: 0 });
    assert_eq!(caller.backend.metrics().rpc_retries_total.get(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_connect_does_not_stand_behind_clients_that_never_stop_and_nor_does_a_quiet_client() {
    let mut app = Server::start().await;
    let mut caller = Caller::new(Settings { concurrency: 2, ..to(&app) });
    (0..100).for_each(|index| caller.backend.submit(command(index)).unwrap());
    // Each performs again as soon as it is answered.
    for _ in 0..150 {
        app.next().await.succeed();
        let key = caller.answer().await.key;
        caller.backend.submit(command(key.index)).unwrap();
    }
    caller.backend.submit(connect(1000)).unwrap();
    caller.backend.submit(command(1001)).unwrap();
    let mut seen = Vec::new();
    for _ in 0..5 {
        let asked = app.next().await;
        seen.push(asked.name().to_owned());
        asked.succeed();
        caller.answer().await;
    }
    // Two were running already. The name of a Connect is empty.
    assert!(seen.iter().any(String::is_empty) && seen.contains(&"1001".to_owned()), "{seen:?}");
}

#[tokio::test(start_paused = true)]
async fn when_waiting_calls_take_too_much_memory_the_largest_is_refused_and_small_ones_notice_nothing() {
    let mut app = Server::start().await;
    let mut caller = Caller::new(Settings { concurrency: 1, queue_bytes_max: 64 << 10, ..to(&app) });
    let large = |index, bytes: usize| {
        let mut call = command(index);
        let cableway::model::Request::Command { data, .. } = &mut call.request else { unreachable!() };
        *data = "x".repeat(bytes);
        call
    };
    caller.backend.submit(command(0)).unwrap();
    let running = app.next().await;
    caller.backend.submit(large(1, 30_000)).unwrap();
    caller.backend.submit(large(2, 33_000)).unwrap();
    assert_eq!(caller.backend.submit(large(3, 40_000)), Err(CallError::Overloaded));
    for index in 4..10 {
        caller.backend.submit(command(index)).unwrap();
    }
    let refused = caller.answer().await;
    assert_eq!((refused.key, refused.result), (key(2), Err(CallError::Overloaded)));
    let metrics = caller.backend.metrics();
    assert_eq!(metrics.rpc_overloaded_total.get(), 2);
    assert!((30_000..64 << 10).contains(&metrics.rpc_pending_bytes.get()));
    running.succeed();
    caller.answer().await;
    for index in [1, 4, 5, 6, 7, 8, 9] {
        let asked = app.next().await;
        assert_eq!(asked.name(), index.to_string());
        asked.succeed();
        assert!(caller.answer().await.result.is_ok());
    }
    assert_eq!(caller.backend.metrics().rpc_pending_bytes.get(), 0);
}

#[tokio::test(start_paused = true)]
async fn when_waiting_disconnects_take_too_much_memory_the_largest_is_dropped() {
    let mut app = Server::start().await;
    let settings = Settings { concurrency: 1, disconnect_backlog_bytes: 64 << 10, disconnect_rate: 0, ..to(&app) };
    let caller = Caller::new(settings);
    let large = |index: u32, bytes: usize| {
        let mut call = disconnect(index);
        let cableway::model::Request::Disconnect { env, .. } = &mut call.request else { unreachable!() };
        *env = env.with_identifiers(&"x".repeat(bytes));
        call
    };
    caller.backend.disconnect(disconnect(0)).unwrap();
    let running = app.next().await;
    caller.backend.disconnect(large(1, 60_000)).unwrap();
    caller.backend.disconnect(large(2, 40_000)).unwrap();
    assert!(caller.backend.disconnect(large(3, 50_000)).is_err());
    assert_eq!(caller.backend.metrics().disconnect_dropped_total.get(), 2);
    assert!((40_000..64 << 10).contains(&caller.backend.metrics().disconnect_queue_bytes.get()));
    running.succeed();
    assert_eq!(app.next().await.name().len(), 40_000);
}

#[tokio::test(start_paused = true)]
async fn a_full_disconnect_queue_drops_the_call_and_counts_it() {
    let mut app = Server::start().await;
    let caller = Caller::new(Settings { concurrency: 1, disconnect_backlog: 2, ..to(&app) });
    caller.backend.disconnect(disconnect(0)).unwrap();
    let _running = app.next().await;
    caller.backend.disconnect(disconnect(1)).unwrap();
    caller.backend.disconnect(disconnect(2)).unwrap();
    let back = caller.backend.disconnect(disconnect(3)).unwrap_err();
    assert_eq!(back.key, key(3));
    let metrics = caller.backend.metrics();
    assert_eq!((metrics.disconnect_dropped_total.get(), metrics.disconnect_queue_size.get()), (1, 2));
}

#[tokio::test(start_paused = true)]
async fn draining_sends_sixteen_at_a_time_without_the_rate_limit() {
    let mut app = Server::start().await;
    let caller = Caller::new(Settings { disconnect_rate: 1, ..to(&app) });
    for index in 0..40 {
        caller.backend.disconnect(disconnect(index)).unwrap();
    }
    let first = app.next().await;
    let start = Instant::now();
    let drain = caller.backend.drain(start + secs(30));
    let serve = async {
        let mut running = vec![first];
        for _ in 1..16 {
            running.push(app.next().await);
        }
        settle().await;
        assert!(app.quiet(), "a seventeenth");
        running.pop().unwrap().fail(tonic::Code::Internal);
        running.into_iter().for_each(Asked::succeed);
        for _ in 16..40 {
            app.next().await.succeed();
        }
    };
    let (report, ()) = tokio::join!(drain, serve);
    assert_eq!(report, DrainReport { sent: 39, failed: 1, left: 0 });
    assert!(start.elapsed() < secs(1), "{:?}", start.elapsed());
}

#[tokio::test(start_paused = true)]
async fn draining_ends_at_its_deadline_and_says_what_is_left() {
    let mut app = Server::start().await;
    let caller = Caller::new(Settings { command_timeout: secs(60), ..to(&app) });
    for index in 0..20 {
        caller.backend.disconnect(disconnect(index)).unwrap();
    }
    let start = Instant::now();
    let report = caller.backend.drain(start + secs(2)).await;
    assert_eq!(report, DrainReport { sent: 0, failed: 0, left: 20 });
    assert!(start.elapsed() < secs(2) + Duration::from_millis(20));
    // The 16 that run do not keep the backend alive.
    let running = app.next().await;
    drop(caller);
    running.given_up().await;
}

#[tokio::test(start_paused = true)]
async fn an_error_of_the_app_on_disconnect_counts_as_an_error() {
    let mut app = Server::start().await;
    let caller = Caller::to(&app);
    caller.backend.disconnect(disconnect(0)).unwrap();
    app.next().await.answer(Told::Disconnect(Default::default()));
    assert_eq!(caller.backend.drain(Instant::now() + secs(5)).await, DrainReport { sent: 0, failed: 1, left: 0 });
    assert_eq!(caller.backend.metrics().rpc_error_total.get(), 1);
}

#[tokio::test(start_paused = true)]
async fn calls_that_are_held_are_made_by_one_backend_only() {
    // Aim: whoever takes over makes exactly the calls that were not started, and those that run end where they began. Two run
    // and two wait, of either kind; one of those that run cannot be delivered and goes to the successor.
    let mut app = Server::start().await;
    let mut old = Caller::new(Settings { concurrency: 4, ..to(&app) });
    old.backend.disconnect(disconnect(10)).unwrap();
    old.backend.submit(command(0)).unwrap();
    let running = [app.next().await, app.next().await];
    old.backend.hold();
    (1..3).for_each(|index| old.backend.submit(command(index)).unwrap());
    (11..13).for_each(|index| old.backend.disconnect(disconnect(index)).unwrap());
    settle().await;
    assert!(app.quiet(), "nothing is started");
    let held = old.backend.held();
    let bytes = rmp_serde::to_vec_named(&held).unwrap();
    assert_eq!(rmp_serde::from_slice::<cableway::backend::HeldCalls>(&bytes).unwrap(), held);
    assert_eq!(held.of_sessions, [command(1), command(2)]);
    assert_eq!(held.disconnects, [disconnect(11), disconnect(12)]);

    let (tell, mut told) = tokio::sync::mpsc::unbounded_channel();
    old.backend.succeed(move |call| tell.send(call).unwrap());
    old.backend.disconnect(disconnect(13)).unwrap();
    assert_eq!(told.recv().await, Some(disconnect(13)));
    for asked in running {
        match asked.name() {
            "0" => asked.succeed(),
            _ => asked.fail(tonic::Code::Unavailable),
        }
    }
    assert_eq!(old.answer().await.key, key(0));
    // It is tried again where it was begun for as long as one call is.
    loop {
        tokio::select! {
            biased;
            call = told.recv() => break assert_eq!(call, Some(disconnect(10))),
            asked = app.asked.recv() => asked.unwrap().fail(tonic::Code::Unavailable),
        }
    }
    assert_eq!(old.backend.drain(Instant::now() + secs(5)).await.left, 0);
    assert!(app.quiet() && old.backend.running() == 0);
}

#[tokio::test(start_paused = true)]
async fn calls_that_were_held_go_on_when_they_are_let_go() {
    let mut app = Server::start().await;
    let mut caller = Caller::new(Settings { concurrency: 1, ..to(&app) });
    caller.backend.hold();
    (0..2).for_each(|index| caller.backend.submit(command(index)).unwrap());
    caller.backend.disconnect(disconnect(10)).unwrap();
    // Longer than a call may wait for its turn.
    tokio::time::sleep(secs(6)).await;
    assert!(app.quiet());
    caller.backend.go_on();
    let mut names = Vec::new();
    for _ in 0..3 {
        let Ok(asked) = tokio::time::timeout(secs(1), app.next()).await else { break };
        names.push(asked.name().to_owned());
        asked.succeed();
    }
    names.sort_unstable();
    assert_eq!(names.last().map(String::as_str), Some("10"));
    assert!(caller.answer().await.result.is_ok() || names.len() == 2);
}

/// Shards have no runtime of their own: calls come from plain threads.
#[test]
fn calls_can_be_submitted_from_threads_without_a_runtime() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let (mut caller, mut app) = runtime.block_on(async {
        let app = Server::start().await;
        (Caller::to(&app), app)
    });
    runtime.spawn(async move {
        while let Some(asked) = app.asked.recv().await {
            asked.succeed();
        }
    });
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let backend = &caller.backend;
            scope.spawn(move || (0..50).for_each(|n| backend.submit(command(thread * 50 + n)).unwrap()));
        }
    });
    let mut answered: Vec<u32> = (0..200).map(|_| caller.answers.blocking_recv().unwrap().key.index).collect();
    answered.sort_unstable();
    assert_eq!(answered, (0..200).collect::<Vec<_>>());
}

/// What readiness asks: a thread that stands still makes no calls, whatever the app says.
#[test]
fn a_thread_that_stands_still_is_found_out() {
    let standing = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let settings = Settings { target: Target::parse("127.0.0.1:1").unwrap(), ..Settings::default() };
    let backend = Backend::start(settings, standing.handle(), Arc::new(drop)).unwrap();
    let asking = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    assert!(!asking.block_on(backend.turns()));
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let thread = std::thread::spawn(move || standing.block_on(stopped));
    assert!(tokio::runtime::Runtime::new().unwrap().block_on(backend.turns()));
    drop(stop);
    assert!(thread.join().unwrap().is_err());
}
