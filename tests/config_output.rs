//! What the configuration prints: help, sample file, values in force. None of it may drift from the table or
//! show a key.

use std::collections::BTreeMap;
use std::path::Path;

use cableway::config::{self, Command, Config};

fn command(args: &[&str], env: &[(&str, &str)], file: Option<&str>) -> Command {
    let env = env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    let read = |path: &Path| match file {
        Some(text) if path == Path::new("./cableway.toml") => Ok(text.to_owned()),
        _ => Err(std::io::ErrorKind::NotFound.into()),
    };
    config::parse_with(args, &env, &read).expect("good").command
}

fn printed(args: &[&str], env: &[(&str, &str)], file: Option<&str>) -> String {
    match command(args, env, file) {
        Command::PrintConfig(text) => text,
        other => panic!("{other:?}"),
    }
}

/// Aim: the file in the repository is what the table says. `CABLEWAY_BLESS=1 cargo test --test config_output`
/// writes it anew.
#[test]
fn the_sample_file_is_in_step_with_the_table() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("config/cableway.toml");
    let sample = printed(&["config", "--sample"], &[], None);
    if std::env::var_os("CABLEWAY_BLESS").is_some() {
        std::fs::write(&path, &sample).expect("written");
    }
    let kept = std::fs::read_to_string(&path).expect("config/cableway.toml");
    assert!(kept == sample, "config/cableway.toml is out of step; run with CABLEWAY_BLESS=1");
}

#[test]
fn the_sample_file_means_the_defaults_as_it_is_and_with_every_line_in_force() {
    let sample = config::sample();
    assert_eq!(command(&[], &[], Some(&sample)), Command::Serve(Box::default()));
    let uncommented =
        |line: &str| line.strip_prefix('#').filter(|l| !l.starts_with(' ') && !l.is_empty()).map(str::to_owned);
    let in_force: Vec<String> =
        sample.lines().map(|line| uncommented(line).unwrap_or_else(|| line.to_owned())).collect();
    let keys = in_force.iter().filter(|line| !line.starts_with(['#', '[']) && !line.is_empty()).count();
    let working = config::all().filter(|definition| definition.works() && !definition.toml.is_empty()).count();
    assert_eq!(keys, working);
    assert_eq!(command(&[], &[], Some(&in_force.join("\n"))), Command::Serve(Box::default()));
}

#[test]
fn the_configuration_in_force_can_be_used_as_a_file() {
    let args = [
        "--print-config",
        "--port=9",
        "--path=/a,/b",
        "--ping-interval=1500ms",
        "--max-message-size=100",
        "--metrics-http=none",
        "--metrics-tags=a:b\"c,d:e\\f",
        "--headers=none",
        "--public",
        "--streams-secret=none",
        "--http-rpc-timeout=7",
        "--norpc",
        "--debug",
    ];
    let text = printed(&args, &[], None);
    let again = command(&[], &[], Some(&text));
    let direct = command(&args[1..], &[], None);
    let (Command::Serve(mut again), Command::Serve(mut direct)) = (again, direct) else { panic!() };
    // --norpc has no key in a file; what it stands for has.
    assert!(direct.rpc.norpc && !again.rpc.norpc);
    (again.rpc.norpc, direct.rpc.norpc) = (false, false);
    assert_eq!(again, direct);
    assert_eq!(command(&[], &[], Some(&printed(&["config"], &[], None))), Command::Serve(Box::default()));
}

#[test]
fn the_configuration_in_force_says_where_each_value_came_from() {
    let text = printed(
        &["config", "--max_conn=5", "--public"],
        &[("CABLEWAY_HOST", "::1"), ("PORT", "81")],
        Some("[app]\nping_interval = 9\n"),
    );
    let line = |key: &str| text.lines().find(|line| line.starts_with(&format!("{key} ="))).expect(key).to_owned();
    for (key, value, origin) in [
        ("max_conn", "5", "# flag --max_conn"),
        ("host", "\"::1\"", "# env CABLEWAY_HOST"),
        ("port", "81", "# env PORT"),
        ("ping_interval", "\"9s\"", "# file ./cableway.toml"),
        ("noauth", "true", "# --public"),
        ("pong_timeout", "\"0s\"", "# default"),
    ] {
        assert!(line(key).starts_with(&format!("{key} = {value} ")) && line(key).ends_with(origin), "{}", line(key));
    }
}

#[test]
fn no_key_is_ever_printed() {
    let secrets: Vec<&str> =
        config::all().filter(|d| d.kind == config::Kind::Secret && d.works()).map(|d| d.name).collect();
    assert!(secrets.len() >= 8, "{secrets:?}");
    let args: Vec<String> = secrets.iter().map(|name| format!("--{name}=hunter2")).collect();
    let mut args: Vec<&str> = args.iter().map(String::as_str).collect();
    args.push("--rpc-host=http://me:hunter2@app.test/_anycable");
    let Command::Serve(config) = command(&args, &[], None) else { panic!() };
    assert!(!format!("{:?}", config::Secrets::resolve(&config)).contains("hunter2"));
    assert!(!format!("{:?} {:?} {:?}", config.app, config.jwt, config.broadcast).contains("hunter2"));
    args.insert(0, "config");
    let text = printed(&args, &[], None);
    assert!(!text.contains("hunter2"), "{text}");
    assert!(text.contains("# host = \"http://***@app.test/_anycable\""), "{text}");
    assert_eq!(text.matches(" is set ").count(), secrets.len(), "{text}");
}

#[test]
fn help_names_every_option_and_hides_the_rare_ones_at_first() {
    let help = |args: &[&str]| match command(args, &[], None) {
        Command::Help(text) => text,
        other => panic!("{other:?}"),
    };
    let (short, long) = (help(&["--help"]), help(&["help", "--all"]));
    assert_eq!(help(&["help"]), short);
    assert_eq!(help(&["serve", "-h", "--all"]), long);
    for definition in config::all().filter(|definition| !definition.name.is_empty()) {
        let name = format!("--{}", definition.name);
        let named = |text: &str| text.split([' ', '\n', ',', ':']).any(|word| word == name);
        assert!(named(&long), "{name} is missing from help --all");
        if definition.works() && !definition.hidden {
            assert!(named(&short), "{name} is missing from the help");
        }
    }
    assert!(!short.contains("--rpc-command-timeout"));
    assert!(long.lines().all(|line| line.chars().count() <= 120));
}

#[test]
fn the_version_is_bare() {
    for args in [["--version"], ["-v"]] {
        assert_eq!(command(&args, &[], None), Command::Version(env!("CARGO_PKG_VERSION").to_owned()));
    }
}

#[test]
fn demo_takes_the_same_options() {
    let Command::Demo(config) = command(&["demo", "--port", "0"], &[], None) else { panic!() };
    assert_eq!(config.server.port, 0);
    let mut default = Config::default();
    default.server.port = 0;
    assert_eq!(*config, default);
    assert!(config::parse(["demo", "--bogus"], &BTreeMap::new()).is_err());
}
