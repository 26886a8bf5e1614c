//! Completions and the man page, in front of the programs that read them: real shells complete real command lines, and
//! troff has nothing to say about the page.

use std::io::Write;
use std::process::{Command, Output, Stdio};

const CABLEWAY: &str = env!("CARGO_BIN_EXE_cableway");

fn run(program: &str, arguments: &[&str], input: &str) -> Output {
    let mut command = Command::new(program);
    command.args(arguments).env("LC_ALL", "C.UTF-8").env("HOME", "/nonexistent");
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap_or_else(|error| panic!("{program}: {error}"));
    let mut stdin = child.stdin.take().expect("piped");
    let input = input.to_owned();
    let writer = std::thread::spawn(move || stdin.write_all(input.as_bytes()));
    let output = child.wait_with_output().expect("it ends");
    // A program that has seen enough leaves the rest.
    let _ = writer.join().expect("it does not panic");
    output
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn printed(arguments: &[&str]) -> String {
    let output = run(CABLEWAY, arguments, "");
    assert!(output.status.success() && output.stderr.is_empty(), "{arguments:?}: {output:?}");
    text(&output.stdout)
}

/// Command lines up to the cursor, and what must be offered there. The last column must not be.
const LINES: &[(&str, &[&str], &str)] = &[
    ("cableway to", &["top"], "demo"),
    ("cableway ", &["serve", "top", "healthcheck", "completions", "man"], "bash"),
    ("cableway serve --max-c", &["--max-conn"], "--max-fragments"),
    ("cableway --allowed", &["--allowed-origins"], "--url"),
    ("cableway top --", &["--url", "--once", "--interval"], "--max-conn"),
    ("cableway upgrade --", &["--check", "--wait", "--control-socket", "--port"], "--once"),
    ("cableway healthcheck --", &["--url", "--port"], "--once"),
    ("cableway completions ", &["bash", "zsh", "fish"], "serve"),
];

/// What a terminal is sent, without its control sequences; the `=` behind a flag that takes a value goes as well.
fn plain(sent: &str) -> String {
    let mut pieces = sent.split('\u{1b}');
    let mut text = pieces.next().unwrap_or_default().to_owned();
    for piece in pieces {
        text.push(' ');
        text.push_str(piece.split_once(|c: char| c.is_ascii_alphabetic()).map_or("", |(_, rest)| rest));
    }
    text.replace(['=', '\u{7}', '\u{8}'], " ")
}

fn offers(shell: &str, complete: impl Fn(&str) -> String) {
    for (line, wanted, unwanted) in LINES {
        let offered = complete(line);
        let words: Vec<&str> = offered.split_whitespace().collect();
        assert!(wanted.iter().all(|word| words.contains(word)), "{shell}, {line:?}: {offered}");
        assert!(!words.contains(unwanted), "{shell}, {line:?}: {offered}");
    }
}

#[test]
fn bash_completes_commands_and_options() {
    let script = printed(&["completions", "bash"]);
    let bash = |line: &str, more: &str| {
        let input = format!(
            "{script}\nCOMP_LINE='{line}'; read -ra COMP_WORDS <<< \"$COMP_LINE\"\n\
             [[ $COMP_LINE == *' ' ]] && COMP_WORDS+=('')\nCOMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))\n{more}\n\
             $(complete -p cableway | sed 's/.*-F \\([^ ]*\\) .*/\\1/')\nprintf '%s\\n' \"${{COMPREPLY[@]}}\"\n"
        );
        let output = run("bash", &["--norc", "--noprofile"], &input);
        assert!(output.stderr.is_empty(), "{line}: {}", text(&output.stderr));
        text(&output.stdout)
    };
    offers("bash", |line| bash(line, ""));
    assert!(bash("cableway --config Cargo.t", "").contains("Cargo.toml"), "a file");
    assert!(bash("cableway --config = Cargo.t", "").contains("Cargo.toml"), "as bash splits --config=Cargo.t");
    assert_eq!(bash("cableway --port ", "").trim(), "", "a number is for people to know");
}

#[test]
fn a_wrong_call_says_what_is_right() {
    for arguments in [&["completions"][..], &["completions", "tcsh"], &["completions", "bash", "zsh"], &["man", "7"]] {
        let output = run(CABLEWAY, arguments, "");
        assert_eq!(output.status.code(), Some(64), "{arguments:?}");
        assert!(text(&output.stderr).starts_with("usage: cableway ") && output.stdout.is_empty(), "{output:?}");
    }
    let output = run(CABLEWAY, &["helthcheck"], "");
    assert!(text(&output.stderr).contains("healthcheck"), "{output:?}");
}

#[test]
#[ignore = "needs fish"]
fn fish_completes_commands_and_options() {
    let script = printed(&["completions", "fish"]);
    offers("fish", |line| {
        let output = run("fish", &["--no-config"], &format!("{script}\ncomplete -C '{line}'\n"));
        assert!(output.stderr.is_empty(), "{line}: {}", text(&output.stderr));
        text(&output.stdout)
    });
}

#[test]
#[ignore = "needs zsh"]
fn zsh_completes_commands_and_options() {
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::write(folder.path().join("_cableway"), printed(&["completions", "zsh"])).expect("written");
    let folder = folder.path().display();
    offers("zsh", |line| {
        // A shell in a terminal of its own, where TAB is pressed; a word behind the list says that it is complete.
        let input = format!(
            "zmodload zsh/zpty\nzpty inner zsh -f\n\
             zpty -w inner \"PS1=; fpath=({folder} \\$fpath); autoload -U compinit; compinit -u -d {folder}/dump\"\n\
             zpty -w inner \"zstyle ':completion:*' list-prompt ''; LISTMAX=10000; setopt nobeep; stty rows 200 cols 200; print read''y\"\n\
             zpty -r -m inner out '*ready*'\n\
             zpty -w -n inner $'{line}\\t\\t\\C-a\\C-kprint don\\'\\'e\\n'\n\
             zpty -r -m inner out '*done*'\nprint -r -- $out\n"
        );
        let output = run("zsh", &["-f"], &input);
        assert!(output.stderr.is_empty(), "{line}: {}", text(&output.stderr));
        plain(&text(&output.stdout))
    });
}

#[test]
#[ignore = "needs mandoc and groff"]
fn troff_has_nothing_to_say_about_the_man_page() {
    let page = printed(&["man"]);
    let lint = run("mandoc", &["-T", "lint", "-W", "warning"], &page);
    assert!(lint.status.success(), "{}", text(&lint.stdout));
    let groff = run("groff", &["-ww", "-z", "-man", "-Tutf8", "-"], &page);
    assert!(groff.status.success() && groff.stderr.is_empty(), "{}", text(&groff.stderr));
    let shown = run("groff", &["-man", "-Tascii", "-P-c", "-P-b", "-P-o", "-P-u", "-"], &page);
    let shown = text(&shown.stdout);
    assert!(shown.contains("--allowed-origins") && shown.lines().any(|line| line == "COMMANDS"), "{shown}");
}
