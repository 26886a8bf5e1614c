//! The commands of the program, for its help, its man page and the completions of shells. What a command does is not known
//! here; `cli` carries it out.

/// One command.
#[derive(Clone, Copy, Debug)]
pub struct Subcommand {
    /// The word on the command line.
    pub name: &'static str,
    /// What may be written, without the program's name, and what it does.
    pub usage: &'static [(&'static str, &'static str)],
    /// Whether it takes the options of the server.
    pub takes_options: bool,
    /// Flags of its own.
    pub flags: &'static [CommandFlag],
    /// Words that may follow it, if they are few.
    pub words: &'static [&'static str],
}

/// A flag that belongs to a command and is no option of the configuration.
#[derive(Clone, Copy, Debug)]
pub struct CommandFlag {
    /// With its dashes.
    pub name: &'static str,
    /// What follows it; empty: nothing.
    pub value: &'static str,
    /// What it does, in one line.
    pub about: &'static str,
}

const fn flag(name: &'static str, value: &'static str, about: &'static str) -> CommandFlag {
    CommandFlag { name, value, about }
}

/// Flags of every command that takes the options of the server.
pub(super) const SERVER_FLAGS: &[CommandFlag] = &[
    flag(
        "--config",
        "PATH",
        "TOML, or YAML if the name ends in .yaml or .yml; also --config-path, env CABLEWAY_CONFIG.",
    ),
    flag("--ignore-config-path", "", "Read no file."),
    flag("--print-config", "", "The same as the command config."),
];

/// Flags that go with every command.
pub(super) const COMMON_FLAGS: &[CommandFlag] = &[flag("--help", "", "Say how it is used.")];

/// Shells that completions are made for.
pub const SHELLS: &[&str] = &["bash", "zsh", "fish"];

/// All commands that are for people, in the order of the help.
pub const SUBCOMMANDS: &[Subcommand] = &[
    Subcommand {
        name: "serve",
        usage: &[("[serve] [OPTIONS]", "run the server")],
        takes_options: true,
        flags: &[],
        words: &[],
    },
    Subcommand {
        name: "demo",
        usage: &[("demo [OPTIONS]", "run it with a sample app and a page to try it")],
        takes_options: true,
        flags: &[],
        words: &[],
    },
    Subcommand {
        name: "top",
        usage: &[("top [--url URL]", "show what a running server does, in a terminal; more: cableway top --help")],
        takes_options: false,
        flags: &[
            flag("--url", "URL", "Where its metrics are."),
            flag("--interval", "SECONDS", "Time between two looks."),
            flag("--once", "", "Print one frame as text and end."),
        ],
        words: &[],
    },
    Subcommand {
        name: "doctor",
        usage: &[("doctor", "whether this machine holds so many clients; more: cableway doctor --help")],
        takes_options: true,
        flags: &[
            flag("--connections", "N", "Clients that it should hold, like 1000000, 1_000_000 or 1M."),
            flag("--backend", "KIND", "How the app is reached: grpc, http, or pass."),
            flag("--backends", "N", "Addresses of the app, with --backend pass."),
            flag("--interface", "NAME", "The network card."),
            flag("--explain", "", "Give a reason for every check."),
            flag("--json", "", "Print one JSON document."),
            flag("--write", "DIR", "Write files for that goal."),
            flag("--apply", "", "Set now what can be set now, as root."),
            flag("--facts", "", "Print what was read of the machine, and end."),
            flag("--from", "FILE", "Judge a machine by what --facts printed there."),
        ],
        words: &[],
    },
    Subcommand {
        name: "healthcheck",
        usage: &[("healthcheck [--url URL]", "ask a running server whether it lives: status 0 if so, 1 if not")],
        takes_options: true,
        flags: &[flag("--url", "URL", "What to ask; without it the options say where the server is.")],
        words: &[],
    },
    Subcommand {
        name: "upgrade",
        usage: &[("upgrade [--check]", "let a new process take over every connection; more: cableway upgrade --help")],
        takes_options: true,
        flags: &[
            flag("--check", "", "Only see whether it would go."),
            flag("--wait", "SECONDS", "How long to wait for the end of it."),
        ],
        words: &[],
    },
    Subcommand {
        name: "config",
        usage: &[
            ("config [OPTIONS]", "print the configuration in force and where each value came from"),
            ("config --sample", "print a configuration file with every option"),
        ],
        takes_options: true,
        flags: &[flag("--sample", "", "Print a configuration file with every option.")],
        words: &[],
    },
    Subcommand {
        name: "completions",
        usage: &[("completions SHELL", "print completions for bash, zsh or fish")],
        takes_options: false,
        flags: &[],
        words: SHELLS,
    },
    Subcommand {
        name: "man",
        usage: &[("man", "print the man page, for man -l")],
        takes_options: false,
        flags: &[],
        words: &[],
    },
    Subcommand {
        name: "help",
        usage: &[("help [--all]", "print this; with --all, also rarely used options")],
        takes_options: false,
        flags: &[flag("--all", "", "Also rarely used options, old names and what is not there yet.")],
        words: &[],
    },
];
