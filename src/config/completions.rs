//! Completions for shells, made from the tables.

use std::fmt::Write;

use super::commands::{COMMON_FLAGS, CommandFlag, SERVER_FLAGS, SUBCOMMANDS, Subcommand};
use super::definition::{Definition, Kind};
use super::options;
use super::text::{paragraphs, value_word};

/// The script for one of [`SHELLS`](super::SHELLS); `None` for others.
pub fn completions(shell: &str) -> Option<String> {
    match shell {
        "bash" => Some(bash()),
        "zsh" => Some(zsh()),
        "fish" => Some(fish()),
        _ => None,
    }
}

/// A flag as shells see it.
struct Flag {
    name: String,
    value: &'static str,
    about: String,
    /// Its value may be a file.
    takes_file: bool,
}

impl Flag {
    fn of_command(flag: &CommandFlag) -> Flag {
        let CommandFlag { name, value, about } = *flag;
        Flag { name: name.into(), value, about: about.into(), takes_file: value == "PATH" }
    }

    fn of_option(definition: &Definition) -> Flag {
        let first = paragraphs(definition).into_iter().next().unwrap_or_default();
        // Long ones would fill the screen: the first sentence says what it is.
        let about = first.split_once(". ").map_or(first.as_str(), |(sentence, _)| sentence);
        Flag {
            name: format!("--{}", definition.name),
            value: value_word(definition),
            about: about.trim_end_matches('.').to_owned(),
            takes_file: definition.kind == Kind::Text,
        }
    }
}

fn flags(command: &Subcommand) -> Vec<Flag> {
    let mut flags: Vec<Flag> = command.flags.iter().chain(COMMON_FLAGS).map(Flag::of_command).collect();
    if command.takes_options {
        flags.extend(SERVER_FLAGS.iter().map(Flag::of_command));
        let working = options::all().filter(|definition| definition.works() && !definition.name.is_empty());
        flags.extend(working.map(Flag::of_option));
    }
    flags
}

/// Text in single quotes, as all three shells take it; quotes inside are left out.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace(['\'', '\\'], ""))
}

fn names(of: impl Iterator<Item = String>) -> String {
    of.collect::<Vec<_>>().join(" ")
}

fn about(command: &Subcommand) -> &'static str {
    command.usage[0].1
}

fn bash() -> String {
    let commands = names(SUBCOMMANDS.iter().map(|command| command.name.to_owned()));
    let mut cases = String::new();
    for command in SUBCOMMANDS {
        let flags = flags(command);
        let list = |wanted: &dyn Fn(&Flag) -> bool| {
            names(flags.iter().filter(|flag| wanted(flag)).map(|flag| flag.name.clone()))
        };
        let _ = writeln!(cases, "    {})", command.name);
        let _ = writeln!(cases, "      flags={}", quoted(&list(&|_| true)));
        let _ = writeln!(cases, "      files={}", quoted(&list(&|flag| flag.takes_file)));
        let with_values = list(&|flag| !flag.value.is_empty() && !flag.takes_file);
        let _ = writeln!(cases, "      values={}", quoted(&with_values));
        let _ = writeln!(cases, "      words={}", quoted(&command.words.join(" ")));
        let _ = writeln!(cases, "      ;;");
    }
    format!(
        r#"# bash completion for cableway. Made by `cableway completions bash`.
_cableway() {{
  local commands='{commands}'
  local flags files values words word command= current="${{COMP_WORDS[COMP_CWORD]}}" previous="${{COMP_WORDS[COMP_CWORD-1]}}"
  # bash takes --flag=value for three words.
  if [[ $current == = ]]; then
    current=
  elif [[ $previous == = && COMP_CWORD -gt 1 ]]; then
    previous="${{COMP_WORDS[COMP_CWORD-2]}}"
  fi
  for word in "${{COMP_WORDS[@]:1:COMP_CWORD-1}}"; do
    if [[ " $commands " == *" $word "* ]]; then
      command=$word
      break
    fi
  done
  case ${{command:-serve}} in
{cases}  esac
  if [[ " $files " == *" $previous "* ]]; then
    compopt -o filenames 2>/dev/null
    COMPREPLY=($(compgen -f -- "$current"))
  elif [[ " $values " == *" $previous "* ]]; then
    COMPREPLY=()
  elif [[ $current == -* ]]; then
    COMPREPLY=($(compgen -W "$flags" -- "$current"))
  elif [[ -n $command ]]; then
    COMPREPLY=($(compgen -W "$words" -- "$current"))
  else
    COMPREPLY=($(compgen -W "$commands" -- "$current"))
  fi
}}
complete -F _cableway cableway
"#
    )
}

fn zsh() -> String {
    // `[`, `]` and `:` mean something to _arguments.
    let plain = |text: &str| text.replace(['[', ']'], "").replace(':', "\\:").replace('\'', "");
    let mut commands = String::new();
    let mut cases = String::new();
    for command in SUBCOMMANDS {
        let _ = writeln!(commands, "    '{}:{}'", command.name, plain(about(command)));
        let _ = writeln!(cases, "    {})\n      _arguments -S \\", command.name);
        for flag in flags(command) {
            let value = match flag.value {
                "" => String::new(),
                value if flag.takes_file => format!(":{value}:_files"),
                value => format!(":{value}: "),
            };
            let equals = if value.is_empty() { "" } else { "=" };
            let _ = writeln!(cases, "        '{}{equals}[{}]{value}' \\", flag.name, plain(&flag.about));
        }
        let _ = writeln!(cases, "        '*:word:({})'\n      ;;", command.words.join(" "));
    }
    format!(
        r#"#compdef cableway
# zsh completion for cableway. Made by `cableway completions zsh`.
_cableway() {{
  local -a commands
  commands=(
{commands}  )
  local command= word
  for word in "${{(@)words[2,CURRENT-1]}}"; do
    if [[ -n ${{commands[(r)$word:*]}} ]]; then
      command=$word
      break
    fi
  done
  if [[ -z $command && $words[CURRENT] != -* && $words[CURRENT-1] != -* ]]; then
    _describe -t commands command commands
    return
  fi
  case ${{command:-serve}} in
{cases}  esac
}}
if [[ $funcstack[1] == _cableway ]]; then
  _cableway "$@"
else
  compdef _cableway cableway
fi
"#
    )
}

fn fish() -> String {
    let commands = names(SUBCOMMANDS.iter().map(|command| command.name.to_owned()));
    let mut text =
        "# fish completion for cableway. Made by `cableway completions fish`.\ncomplete -c cableway -f\n".to_owned();
    for command in SUBCOMMANDS {
        let _ = writeln!(
            text,
            "complete -c cableway -n 'not __fish_seen_subcommand_from {commands}' -a {} -d {}",
            command.name,
            quoted(about(command))
        );
    }
    for command in SUBCOMMANDS {
        // Without a command the server runs.
        let seen = match command.name {
            "serve" => {
                let others =
                    names(SUBCOMMANDS.iter().map(|other| other.name.to_owned()).filter(|name| name != "serve"));
                format!("'not __fish_seen_subcommand_from {others}'")
            }
            name => format!("'__fish_seen_subcommand_from {name}'"),
        };
        for flag in flags(command) {
            let name = flag.name.trim_start_matches('-');
            let value = match flag.value {
                "" => "",
                _ if flag.takes_file => " -r -F",
                _ => " -x",
            };
            let _ = writeln!(text, "complete -c cableway -n {seen} -l {name}{value} -d {}", quoted(&flag.about));
        }
        if !command.words.is_empty() {
            let _ = writeln!(text, "complete -c cableway -n {seen} -a {}", quoted(&command.words.join(" ")));
        }
    }
    text
}
