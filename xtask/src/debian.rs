//! Bare Debian systems in directories, as `deploy/` is tested in: made once with mmdebstrap from the package sources of this
//! machine, and copied for each use.

use crate::Places;
use crate::command::Command;
use crate::machine::Need;
use std::path::{Path, PathBuf};

pub const MMDEBSTRAP: Need = Need::Program { program: "mmdebstrap", package: "mmdebstrap" };

/// Where apt keeps the sources that Debian comes with: the new form, and the old one.
const SOURCES: [&str; 2] = ["/etc/apt/sources.list.d/debian.sources", "/etc/apt/sources.list"];

/// The folder of everything that the steps about `deploy/` make.
pub fn folder(places: &Places) -> PathBuf {
    places.target.join("deploy")
}

/// A directory with a minimal Debian and `packages`. It is kept, and nobody writes into it: see [`copy`]. As root.
pub fn system(places: &Places, name: &str, packages: &[&str]) -> Result<PathBuf, String> {
    let system = folder(places).join(name);
    if system.join("etc/debian_version").is_file() {
        return Ok(system);
    }
    let sources = SOURCES.into_iter().find(|file| Path::new(file).is_file());
    let sources = sources.ok_or("apt has no sources of Debian packages here")?;
    let unfinished = folder(places).join(format!("{name}.unfinished"));
    let include: Vec<String> = packages.iter().map(|package| format!("--include={package}")).collect();
    let made = remove(places, &unfinished)
        && std::fs::create_dir_all(folder(places)).is_ok()
        && Command::new("mmdebstrap", places)
            .arg("--variant=minbase")
            .args(include)
            .arg("")
            .arg(&unfinished)
            .arg(sources)
            .passes();
    if !made {
        return Err("mmdebstrap made no Debian system".to_owned());
    }
    std::fs::rename(&unfinished, &system).map_err(|error| format!("{}: {error}", system.display()))?;
    Ok(system)
}

/// A copy of a system that may be changed, in the place of the last one of that name.
pub fn copy(places: &Places, system: &Path, name: &str) -> Result<PathBuf, String> {
    let copy = folder(places).join(name);
    let copied = remove(places, &copy) && Command::new("cp", places).args(["-a"]).arg(system).arg(&copy).passes();
    if copied { Ok(copy) } else { Err(format!("{} cannot be copied", system.display())) }
}

/// Removes a directory, if it is there.
pub fn remove(places: &Places, directory: &Path) -> bool {
    Command::new("rm", places).args(["-rf", "--one-file-system"]).arg(directory).passes()
}
