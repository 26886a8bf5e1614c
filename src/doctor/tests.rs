//! Recorded machines, judged. `tests/fixtures/doctor/README.md` says where each is from.

use crate::config::Config;

use super::*;

const MACHINES: [(&str, &str); 5] = [
    ("container", include_str!("../../tests/fixtures/doctor/container.json")),
    ("small-vm", include_str!("../../tests/fixtures/doctor/small-vm.json")),
    ("large", include_str!("../../tests/fixtures/doctor/large.json")),
    ("wsl2", include_str!("../../tests/fixtures/doctor/wsl2.json")),
    ("all-wrong", include_str!("../../tests/fixtures/doctor/all-wrong.json")),
];

const GOALS: [u64; 3] = [1_000, 1_000_000, 5_000_000];

fn machine(name: &str) -> Facts {
    let (_, text) = MACHINES.iter().find(|(machine, _)| *machine == name).expect("a recorded machine");
    serde_json::from_str(text).expect(name)
}

fn goal(connections: u64) -> Goal {
    Goal::new(connections, Backend::Grpc, &Config::default())
}

/// Every recorded machine with every goal and kind of app, and with options of the server that do not fit.
fn every_case() -> impl Iterator<Item = (String, Facts, Goal)> {
    MACHINES.iter().flat_map(|(name, _)| {
        let goals = GOALS.into_iter().flat_map(|connections| {
            [Backend::Grpc, Backend::Http, Backend::Pass].map(|backend| Goal { backend, ..goal(connections) })
        });
        let odd = Goal { max_conn: 500, acceptors: 100, backlog: 100_000, port: 443, ..goal(1_000_000) };
        goals
            .chain([odd])
            .map(move |goal| (format!("{name}, {} {:?}", goal.connections, goal.backend), machine(name), goal))
    })
}

/// Name without what changes when it is set right.
fn stem(row: &Row) -> &str {
    row.name.split(" (a ping").next().unwrap_or_default()
}

/// A machine, a goal, what binds first, and what stands against the goal with a line of each.
type Expected = (&'static str, u64, &'static str, &'static [(&'static str, &'static str)]);

/// What stands against each goal on each machine, with the line that sets it right.
const EXPECTED: &[Expected] = &[
    ("container", 1_000, "open files (hard limit)", &[]),
    (
        "container",
        1_000_000,
        "open files (hard limit)",
        &[
            ("open files (hard limit)", "docker run --ulimit nofile=1002048:1002048 ..."),
            ("cores", "a machine with 5 cores"),
        ],
    ),
    (
        "container",
        5_000_000,
        "open files (hard limit)",
        &[
            ("open files (hard limit)", "docker run --ulimit nofile=5002048:5002048 ..."),
            ("fs.nr_open", "sysctl -w fs.nr_open=6000000"),
            ("fs.file-max", "sysctl -w fs.file-max=6500000"),
            ("memory", "a machine with 30 GiB of memory"),
            ("cores", "a machine with 23 cores"),
        ],
    ),
    ("small-vm", 1_000, "memory", &[]),
    (
        "small-vm",
        1_000_000,
        "memory",
        &[
            ("fs.epoll.max_user_watches", "sysctl -w fs.epoll.max_user_watches=2000000"),
            ("memory", "a machine with 5.6 GiB of memory"),
            ("cores", "a machine with 5 cores"),
        ],
    ),
    (
        "small-vm",
        5_000_000,
        "memory",
        &[
            ("open files (hard limit)", "* hard nofile 5002048"),
            ("fs.nr_open", "sysctl -w fs.nr_open=6000000"),
            ("fs.epoll.max_user_watches", "sysctl -w fs.epoll.max_user_watches=6000000"),
            ("memory", "a machine with 27 GiB of memory"),
            ("cores", "a machine with 23 cores"),
        ],
    ),
    ("large", 1_000, "open files (cableway.service)", &[]),
    (
        "large",
        1_000_000,
        "open files (cableway.service)",
        &[
            ("open files (cableway.service)", "LimitNOFILE=1002048"),
            ("open files (running, pid 4242)", "systemctl restart cableway"),
        ],
    ),
    (
        "large",
        5_000_000,
        "open files (cableway.service)",
        &[
            ("open files (cableway.service)", "LimitNOFILE=5002048"),
            ("open files (running, pid 4242)", "systemctl restart cableway"),
            ("fs.nr_open", "sysctl -w fs.nr_open=6000000"),
            ("net.netfilter.nf_conntrack_max", "sysctl -w net.netfilter.nf_conntrack_max=6100000"),
        ],
    ),
    ("wsl2", 1_000, "open files (hard limit)", &[]),
    ("wsl2", 1_000_000, "open files (hard limit)", &[]),
    (
        "wsl2",
        5_000_000,
        "open files (hard limit)",
        &[
            ("open files (hard limit)", "ulimit -Hn 5002048"),
            ("fs.nr_open", "sysctl -w fs.nr_open=6000000"),
            ("fs.file-max", "sysctl -w fs.file-max=6500000"),
            ("fs.epoll.max_user_watches", "sysctl -w fs.epoll.max_user_watches=6000000"),
            ("memory", "memory=29GB   # under [wsl2] in .wslconfig"),
            ("cores", "a machine with 23 cores"),
        ],
    ),
    (
        "all-wrong",
        1_000,
        "open files (running, pid 812)",
        &[
            ("open files (running, pid 812)", "systemctl restart cableway   # with LimitNOFILE=1172"),
            ("accept queue (net.core.somaxconn)", "sysctl -w net.core.somaxconn=65535"),
            ("net.ipv4.tcp_max_syn_backlog", "sysctl -w net.ipv4.tcp_max_syn_backlog=65535"),
            ("net.ipv4.ip_local_port_range", "sysctl -w net.ipv4.ip_local_port_range='1024 65535'"),
        ],
    ),
    ("all-wrong", 1_000_000, "open files (running, pid 812)", ALL_WRONG_MILLION),
];

const ALL_WRONG_MILLION: &[(&str, &str)] = &[
    ("open files (cableway.service)", "LimitNOFILE=1002048"),
    ("open files (running, pid 812)", "systemctl restart cableway"),
    ("fs.nr_open", "sysctl -w fs.nr_open=2000000"),
    ("fs.file-max", "sysctl -w fs.file-max=2500000"),
    ("fs.epoll.max_user_watches", "sysctl -w fs.epoll.max_user_watches=2000000"),
    ("accept queue (net.core.somaxconn)", "sysctl -w net.core.somaxconn=65535"),
    ("net.ipv4.tcp_max_syn_backlog", "sysctl -w net.ipv4.tcp_max_syn_backlog=65535"),
    ("memory (control group)", "MemoryMax="),
    ("net.netfilter.nf_conntrack_max", "sysctl -w net.netfilter.nf_conntrack_max=1300000"),
    ("net.ipv4.ip_local_port_range", "sysctl -w net.ipv4.ip_local_port_range='1024 65535'"),
];

#[test]
fn what_stands_against_a_goal_is_named_with_its_line() {
    for (name, connections, first, against) in EXPECTED {
        let report = examine(&machine(name), &goal(*connections));
        let case = format!("{name}, {connections}");
        let failing: Vec<&Row> = report.rows.iter().filter(|row| row.verdict == Verdict::No).collect();
        let names: Vec<&str> = failing.iter().map(|row| stem(row)).collect();
        assert_eq!(names, against.iter().map(|(name, _)| *name).collect::<Vec<_>>(), "{case}");
        for (row, (_, line)) in failing.iter().zip(*against) {
            let lines: Vec<String> = row.fixes.iter().flat_map(Fix::lines).collect();
            assert!(lines.iter().any(|found| found.contains(line)), "{case}: {} has {lines:?}", row.name);
        }
        assert_eq!(report.capacity.first.as_ref().map(|bound| bound.by.as_str()), Some(*first), "{case}");
        assert_eq!(report.met, against.is_empty(), "{case}");
    }
}

#[test]
fn every_setting_that_can_be_wrong_is_found_on_the_machine_where_all_are() {
    let rows = rows(&machine("all-wrong"), &Goal { backend: Backend::Pass, ..goal(5_000_000) });
    let passed: Vec<&str> = rows.iter().filter(|row| row.verdict == Verdict::Ok).map(stem).collect();
    let nothing_to_set = [
        "open files (soft limit)",
        "open files (hard limit)",
        "memory",
        "TCP keepalive",
        "net.core.default_qdisc",
        "--acceptors",
        "kernel",
        "kernel features",
    ];
    assert_eq!(passed, nothing_to_set);
}

#[test]
fn the_capacity_is_that_of_the_smallest_bound_and_the_next_is_named() {
    let report = examine(&machine("container"), &goal(1_000_000));
    let bound = |connections, by: &str| Some(Bound { connections, by: by.to_owned() });
    assert_eq!(report.capacity.first, bound(18_750, "open files (hard limit)"));
    assert_eq!(report.capacity.next, bound(450_000, "cores (a ping every 3 s)"));
    assert_eq!(report.capacity_fixed.first, report.capacity.next, "more cores need another machine");
}

/// Aim: a line that is printed does what the check wants. Every check that is not passed is set right by its own lines
/// alone, and passes; what only another machine can change is left out.
#[test]
fn a_rows_own_lines_make_it_pass() {
    let mut tried = 0;
    for (case, facts, goal) in every_case() {
        for row in rows(&facts, &goal).iter().filter(|row| !row.fixes.is_empty()) {
            if row.fixes.iter().any(Fix::is_hardware) {
                continue;
            }
            let (mut facts, mut goal) = (facts.clone(), goal.clone());
            row.fixes.iter().for_each(|fix| fix.pretend(&mut facts, &mut goal));
            let again = rows(&facts, &goal).into_iter().find(|again| stem(again) == stem(row)).expect(&row.name);
            // A table that is full of others' entries needs the goal's besides; the ceiling was found for both.
            assert_eq!(again.verdict, Verdict::Ok, "{case}: {row:#?} {again:#?}");
            tried += 1;
        }
    }
    assert!(tried > 300, "{tried}");
}

#[test]
fn with_all_lines_carried_out_nothing_is_left_but_hardware() {
    for (case, facts, goal) in every_case() {
        let (mut facts, mut goal) = (facts, goal);
        // One line may show the next: a module brings BBR, and BBR wants its queue.
        for _ in 0..3 {
            let report = examine(&facts, &goal);
            fixes(&report).for_each(|(_, fix)| fix.pretend(&mut facts, &mut goal));
        }
        let report = examine(&facts, &goal);
        for (row, fix) in fixes(&report) {
            assert!(fix.is_hardware(), "{case}: {row:#?}");
        }
        let hardware = fixes(&report).any(|(row, _)| row.verdict == Verdict::No);
        assert_eq!(report.met, !hardware, "{case}");
        assert!(facts.cpu.cores < 64 || report.met, "{case}: the large machine holds every goal");
    }
}

/// Carries out a printed line as a person would, on facts.
fn type_in(line: &str, facts: &mut Facts, goal: &mut Goal) {
    let line = line.split("   #").next().unwrap_or_default();
    let number = |text: &str| text.parse::<u64>().unwrap_or_else(|_| panic!("{line}"));
    let (command, rest) = line.split_once(' ').unwrap_or((line, ""));
    match (command, rest) {
        ("sysctl", _) => {
            let (name, value) = rest.strip_prefix("-w ").and_then(|rest| rest.split_once('=')).expect(line);
            facts.sysctls.insert(name.to_owned(), value.trim_matches('\'').to_owned());
        }
        ("ulimit", _) => facts.own.hard = number(rest.trim_start_matches("-Hn ")),
        ("*", _) => facts.own.hard = number(rest.trim_start_matches("hard nofile ")),
        ("docker", _) if rest.contains("nofile") => {
            facts.own.hard = number(rest.rsplit_once(':').expect(line).1.trim_end_matches(" ..."));
        }
        ("modprobe", "tcp_bbr") => {
            let available = "net.ipv4.tcp_available_congestion_control";
            facts.sysctls.get_mut(available).expect(available).push_str(" bbr");
        }
        ("echo", "madvise > /sys/kernel/mm/transparent_hugepage/enabled") => {
            facts.memory.huge_pages = Some("madvise".to_owned());
        }
        ("echo" | "for", _) => {
            let card = facts.interface.as_mut().expect(line);
            let value = line.split("echo ").nth(1).and_then(|rest| rest.split(' ').next()).expect(line);
            if line.contains("rps_cpus") {
                let cores = value.chars().filter_map(|digit| digit.to_digit(16)).map(u32::count_ones).sum();
                card.rps_cpus.fill(cores);
            } else {
                card.rps_flows = number(value);
            }
        }
        ("ethtool", _) => {
            let words: Vec<&str> = rest.split(' ').collect();
            let ["-G", _, "rx", rx, "tx", tx] = words[..] else { panic!("{line}") };
            let rings = facts.interface.as_mut().and_then(|card| card.rings.as_mut()).expect(line);
            (rings.rx.now, rings.tx.now) = (number(rx) as u32, number(tx) as u32);
        }
        ("cableway", _) => match rest.rsplit_once(' ').expect(line) {
            ("serve --max-conn", value) => goal.max_conn = number(value),
            ("serve --acceptors", value) => goal.acceptors = number(value) as usize,
            ("serve --ping-interval", value) => goal.ping_interval = std::time::Duration::from_secs(number(value)),
            _ => panic!("{line}"),
        },
        ("run", _) => goal.backend_addresses = number(rest.split(' ').nth(3).expect(line)),
        _ if command.starts_with("LimitNOFILE=") => {
            facts.unit.as_mut().expect(line).nofile = Some(number(&command["LimitNOFILE=".len()..]));
        }
        // It starts again with the limit that the unit has by then.
        ("systemctl", "restart cableway") => {
            if let (Some(server), Some(unit)) = (&mut facts.server, &facts.unit) {
                server.soft = unit.nofile.expect("set before");
                server.hard = server.soft;
            }
        }
        _ if command.starts_with("MemoryMax=") => {
            let megabytes = number(command["MemoryMax=".len()..].trim_end_matches('M'));
            facts.memory.cgroup.as_mut().expect(line).limit_bytes = megabytes << 20;
        }
        _ => panic!("nobody can carry out: {line}"),
    }
}

/// Aim: the printed text, not only what is meant by it, sets a machine right.
#[test]
fn lines_typed_in_as_they_are_printed_leave_nothing_but_hardware() {
    for (case, facts, goal) in every_case() {
        let (mut facts, mut goal) = (facts, goal);
        for _ in 0..3 {
            let report = examine(&facts, &goal);
            for (_, fix) in fixes(&report).filter(|(_, fix)| !fix.is_hardware()) {
                fix.lines().iter().for_each(|line| type_in(line, &mut facts, &mut goal));
            }
        }
        let left = examine(&facts, &goal);
        assert!(fixes(&left).all(|(_, fix)| fix.is_hardware()), "{case}: {left:#?}");
    }
}

#[test]
fn a_machine_that_tells_nothing_is_unknown_and_not_refused() {
    let facts = Facts { own: machine("wsl2").own, ..Facts::default() };
    let report = examine(&facts, &goal(1_000));
    assert!(report.met, "{report:#?}");
    let unknown = report.rows.iter().filter(|row| row.verdict == Verdict::Unknown).count();
    assert!(unknown > 10, "{report:#?}");
}

#[test]
fn a_kernel_that_lacks_something_is_refused_whatever_it_calls_itself() {
    let refused = |facts: &Facts| {
        let report = examine(facts, &goal(1));
        let rows = report.rows.into_iter().filter(|row| row.verdict == Verdict::No);
        rows.map(|row| format!("{}: {}", row.name, row.set)).collect::<Vec<_>>()
    };
    let mut facts = machine("container");
    facts.missing_features = Some(vec!["SO_REUSEPORT".to_owned()]);
    assert_eq!(refused(&facts), ["kernel features: no SO_REUSEPORT"]);
    facts = Facts { kernel: "3.2.0-4-amd64".to_owned(), ..machine("container") };
    assert_eq!(refused(&facts), ["kernel: 3.2.0-4-amd64"]);
}

#[test]
fn an_exempt_port_needs_no_table() {
    let mut facts = machine("all-wrong");
    facts.untracked_ports = Some(vec![8080]);
    let tracking = |facts: &Facts, goal: &Goal| {
        let rows = rows(facts, goal).into_iter().filter(|row| row.layer == Layer::Conntrack);
        rows.map(|row| row.verdict).collect::<Vec<_>>()
    };
    assert_eq!(tracking(&facts, &goal(1_000_000)), [Verdict::Ok]);
    let elsewhere = Goal { port: 443, ..goal(1_000_000) };
    assert_eq!(tracking(&facts, &elsewhere), [Verdict::No, Verdict::Warn]);
}

#[test]
fn a_server_on_another_port_is_none_of_ours() {
    let facts = machine("all-wrong");
    let names = |goal: &Goal| rows(&facts, goal).iter().map(|row| row.name.clone()).collect::<Vec<_>>();
    assert!(names(&goal(1_000)).iter().any(|name| name.contains("pid 812")));
    assert!(!names(&Goal { port: 443, ..goal(1_000) }).iter().any(|name| name.contains("pid 812")));
}

#[test]
fn the_table_fits_100_columns_and_says_everything_without_colours() {
    for (case, facts, goal) in every_case() {
        for explain in [false, true] {
            let text = table(&examine(&facts, &goal), explain);
            for line in text.lines() {
                assert!(line.chars().count() <= 100, "{case}: {line}");
                assert!(line.is_ascii() && !line.contains('\x1b'), "{case}: {line}");
            }
        }
    }
    let text = table(&examine(&machine("all-wrong"), &goal(1_000_000)), false);
    for part in
        ["  NO    accept queue (net.core.somaxconn)    128 ", "-> sysctl -w net.core.somaxconn=65535", "[listener]"]
    {
        assert!(text.contains(part), "{part}: {text}");
    }
}

#[test]
fn a_server_that_starts_tells_one_line_for_each_check_that_fails() {
    let mut facts = machine("all-wrong");
    (facts.server, facts.unit) = (None, None);
    let lines = at_boot(&facts, &Goal { acceptors: 100, ..goal(50_000) });
    assert!(lines.iter().all(|line| !line.contains('\n')), "{lines:#?}");
    let begin = |part: &str| lines.iter().filter(|line| line.starts_with(part)).count();
    for part in ["open files (hard limit): 4,096; 50,000 clients need 52,048", "accept queue (", "--acceptors: 100"] {
        assert_eq!(begin(part), 1, "{part}: {lines:#?}");
    }
    assert_eq!(begin("eth0") + begin("vm.swappiness"), 0, "advice is for doctor: {lines:#?}");
    let mut fine = machine("large");
    (fine.server, fine.unit) = (None, None);
    assert_eq!(at_boot(&fine, &goal(500_000)), [""; 0]);
}
