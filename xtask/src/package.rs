//! The Debian package: `cargo xtask package` builds it, the step `package` of `cargo xtask test` installs, upgrades and purges
//! it in a bare Debian.

use crate::Places;
use crate::command::{Command, Count};
use crate::debian;
use crate::machine::{self, Need};
use crate::summary::Outcome;
use std::path::{Path, PathBuf};

pub const CARGO_DEB: Need = Need::CargoTool("cargo-deb");
pub const LINTIAN: Need = Need::Program { program: "lintian", package: "lintian" };

/// Builds the package around `binary`; its path.
pub fn build(places: &Places, binary: &Path) -> Result<PathBuf, String> {
    generate(places, binary)?;
    let output = debian::folder(places).join("package");
    let file = output.join("cableway.deb");
    // cargo-deb takes release builds only, from where cargo would have put them; the tests have a debug build.
    let staged = output.join("release/cableway");
    std::fs::create_dir_all(output.join("release"))
        .and_then(|()| std::fs::copy(binary, &staged))
        .map_err(|error| format!("{}: {error}", staged.display()))?;
    let built = machine::tool(places, "cargo-deb")
        .args(["--package", "cableway", "--no-build", "--strip", "--output"])
        .arg(&file)
        .env("CARGO_TARGET_DIR", &output)
        .passes();
    if built { Ok(file) } else { Err("cargo-deb made no package".to_owned()) }
}

/// Writes what the package holds beside the files of the repository, where Cargo.toml looks for it.
fn generate(places: &Places, binary: &Path) -> Result<(), String> {
    let folder = places.root.join("target/package");
    let write = |name: &str, text: String| {
        let file = folder.join(name);
        let parent = file.parent().unwrap_or(&folder);
        std::fs::create_dir_all(parent)
            .and_then(|()| std::fs::write(&file, text))
            .map_err(|error| format!("{}: {error}", file.display()))
    };
    let ask = |args: &[&str]| {
        let said = Command::new(binary, places).args(args).output();
        said.filter(|text| !text.is_empty()).ok_or_else(|| format!("{} {} failed", binary.display(), args.join(" ")))
    };
    write("cableway.1", ask(&["man"])?)?;
    for (shell, file) in [("bash", "cableway"), ("zsh", "_cableway"), ("fish", "cableway.fish")] {
        write(&format!("completions/{file}"), ask(&["completions", shell])?)?;
    }
    write("crates.txt", crates(places)?)?;
    write("changelog", changelog(places)?)
}

/// The crates that are linked into the binary, with their licences: whoever passes the binary on passes them on too.
fn crates(places: &Places) -> Result<String, String> {
    let tree = ["tree", "--locked", "--package", "cableway", "--edges", "normal", "--prefix", "none", "--no-dedupe"];
    let tree = crate::command::cargo(places).args(tree).args(["--format", "{p}: {l}"]).output();
    let tree = tree.ok_or("cargo tree failed")?;
    // The path of this checkout is nobody's business, and ours has a copyright file of its own.
    let mut crates: Vec<&str> = tree.lines().filter(|line| !line.is_empty() && !line.contains(" (")).collect();
    crates.sort_unstable();
    crates.dedup();
    Ok(format!("The crates in /usr/bin/cableway, and their licences.\n\n{}\n", crates.join("\n")))
}

/// Debian wants one in a form of its own; ours, CHANGELOG.md, is installed beside it.
fn changelog(places: &Places) -> Result<String, String> {
    let manifest = places.root.join("Cargo.toml");
    let manifest = std::fs::read_to_string(&manifest).map_err(|error| format!("{}: {error}", manifest.display()))?;
    let version = machine::quoted(&manifest, "version = ").ok_or("Cargo.toml names no version")?;
    let maintainer = machine::quoted(&manifest, "maintainer = ").ok_or("Cargo.toml names no maintainer")?;
    let date = Command::new("git", places).args(["log", "-1", "--format=%cD"]).output().ok_or("git log failed")?;
    Ok(format!(
        "cableway ({version}-1) unstable; urgency=medium\n\n  * What changed for users: NEWS.md beside this file.\n\n -- {maintainer}  {}\n",
        date.trim()
    ))
}

/// The same package with a higher version and another configuration file, as the next release might bring.
pub fn newer(places: &Places, package: &Path) -> Result<PathBuf, String> {
    let folder = debian::folder(places).join("newer-package");
    let unpacked = debian::remove(places, &folder)
        && Command::new("dpkg-deb", places).arg("--raw-extract").arg(package).arg(&folder).passes();
    if !unpacked {
        return Err("dpkg-deb cannot unpack the package".to_owned());
    }
    let edit = |name: &str, change: &dyn Fn(String) -> String| {
        let file = folder.join(name);
        std::fs::read_to_string(&file)
            .and_then(|text| std::fs::write(&file, change(text)))
            .map_err(|error| format!("{}: {error}", file.display()))
    };
    edit("DEBIAN/control", &|text| {
        let newer =
            |line: &str| if line.starts_with("Version: ") { format!("{line}.1\n") } else { format!("{line}\n") };
        text.lines().map(newer).collect()
    })?;
    edit("etc/cableway/cableway.toml", &|text| format!("# Brought by a newer package.\n{text}"))?;
    let newer = package.with_file_name("newer.deb");
    let packed = Command::new("dpkg-deb", places).args(["-Zgzip", "--build"]).arg(&folder).arg(&newer).passes();
    if packed { Ok(newer) } else { Err("dpkg-deb cannot pack the package again".to_owned()) }
}

/// Builds the package around the debug binary, lets lintian look at it, and puts it through its life in a bare Debian.
pub fn check(places: &Places, binary: &Path) -> Outcome {
    match try_check(places, binary) {
        Ok(outcome) => outcome,
        Err(why) => Outcome::Impossible(why),
    }
}

fn try_check(places: &Places, binary: &Path) -> Result<Outcome, String> {
    let package = build(places, binary)?;
    let newer = newer(places, &package)?;
    let lint = ["--allow-root", "--fail-on", "error,warning", "--tag-display-limit", "0"];
    let clean = Command::new("lintian", places).args(lint).arg(&package).passes();

    let system = debian::system(places, "minimal", &[])?;
    let system = debian::copy(places, &system, "package-system")?;
    let scripts = places.root.join("deploy/tests");
    let put = |from: &Path, name: &str| {
        std::fs::create_dir_all(system.join("check"))
            .and_then(|()| std::fs::copy(from, system.join("check").join(name)))
            .map_err(|error| format!("{}: {error}", from.display()))
    };
    put(&package, "old.deb")?;
    put(&newer, "new.deb")?;
    put(&scripts.join("checks.sh"), "checks.sh")?;
    put(&scripts.join("package.sh"), "package.sh")?;
    // Processes, mounts and the network are its own: nothing is left, and port 8080 is free.
    let inside = "ip link set lo up && mount -t proc proc \"$0/proc\" && exec chroot \"$0\" /bin/sh /check/package.sh";
    let (passed, count) = Command::new("unshare", places)
        .args(["--mount", "--pid", "--fork", "--kill-child", "--net", "sh", "-c", inside])
        .arg(&system)
        .counts();
    debian::remove(places, &system);
    let mut count = count;
    count.add(Count { passed: u64::from(clean), failed: u64::from(!clean) });
    Ok(Outcome::Ran { passed: passed && clean, count })
}
