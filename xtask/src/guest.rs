//! `cargo xtask guest`: a Debian that boots real systemd as its first process, in a machine that qemu emulates. The package is
//! installed there, and `deploy/tests/guest.sh` shows that the service does what the unit promises. Nothing of it touches this
//! machine's own systemd, network or settings.

use crate::Places;
use crate::command::{self, Command};
use crate::debian;
use crate::machine::{self, Need};
use crate::package;
use std::path::{Path, PathBuf};

/// qemu for a machine like the one that this is built for, and mke2fs for its disk.
pub const NEEDS: [Need; 5] = [
    Need::Program { program: "qemu-system-x86_64", package: "qemu-system-x86" },
    Need::Program { program: "mke2fs", package: "e2fsprogs" },
    Need::Program { program: "tar", package: "tar" },
    debian::MMDEBSTRAP,
    package::CARGO_DEB,
];

/// A kernel, systemd, and what guest.sh calls.
const PACKAGES: &[&str] = &[
    "systemd-sysv",
    "udev",
    "dbus",
    "linux-image-cloud-amd64",
    "initramfs-tools",
    "zstd",
    "kmod",
    "procps",
    "iproute2",
    "nftables",
    "ethtool",
    "curl",
];

/// Runs what lies on the second disk, then ends the machine.
const UNIT: &str = "\
[Unit]
Description=What the guest was started for
[Service]
Type=exec
ExecStart=/bin/sh -c 'mkdir /guest && tar -xf /dev/vdb -C /guest && exec /bin/sh /guest/guest.sh'
ExecStopPost=/bin/systemctl poweroff --no-block
StandardOutput=tty
StandardError=tty
TTYPath=/dev/ttyS0
[Install]
WantedBy=multi-user.target
";

/// What a person may choose.
struct Options {
    memory_mib: String,
    cpus: String,
    /// Clients of one process; above the default limit of open files of many machines, 20,000.
    connections: String,
    /// For how many seconds clients are opened in the end, until memory or a million is reached. 0: not at all.
    fill: String,
    seconds: String,
}

const USAGE: &str = "cargo xtask guest [--memory MIB] [--cpus N] [--connections N] [--fill SECONDS] [--seconds N]";

fn options(args: &[String]) -> Result<Options, String> {
    let mut options = Options {
        memory_mib: "2048".to_owned(),
        cpus: "2".to_owned(),
        connections: "25000".to_owned(),
        fill: "0".to_owned(),
        seconds: "3600".to_owned(),
    };
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        let place = match arg.as_str() {
            "--fill" => &mut options.fill,
            "--memory" => &mut options.memory_mib,
            "--cpus" => &mut options.cpus,
            "--connections" => &mut options.connections,
            "--seconds" => &mut options.seconds,
            _ => return Err(format!("unknown option {arg}\n{USAGE}")),
        };
        let number = args.next().filter(|number| number.parse::<u32>().is_ok_and(|number| number > 0));
        *place = number.ok_or_else(|| format!("{arg} needs a number\n{USAGE}"))?.clone();
    }
    Ok(options)
}

/// Builds everything, boots the guest, shows what it prints; true when every check in it passed.
pub fn run(places: &Places, args: &[String]) -> Result<bool, String> {
    let options = options(args)?;
    machine::install(places, &NEEDS);
    let build = ["build", "--release", "--locked", "--package", "cableway", "--package", "cableway-loadtest"];
    if !command::cargo(places).args(build).args(["--bin", "cableway", "--bin", "cableway-loadtest"]).passes() {
        return Err("the release build failed".to_owned());
    }
    let release = places.target.join("release");
    let package = package::build(places, &release.join("cableway"))?;
    let disk = disk(places)?;
    let load = load(places, &options, &package, &release.join("cableway-loadtest"))?;
    let (passed, count) = boot(places, &options, &disk, &load).counts();
    // The machine ends well even when a check in it has failed, and says nothing of checks when it never came so far.
    Ok(passed && count.failed == 0 && count.passed > 0)
}

/// Disk, kernel and first file system of the guest. They are made once; the guest writes into a copy that qemu throws away.
struct Disk {
    image: PathBuf,
    kernel: PathBuf,
    initrd: PathBuf,
}

fn disk(places: &Places) -> Result<Disk, String> {
    let system = debian::system(places, "guest", PACKAGES)?;
    let boot = |name: &str| {
        let entries = std::fs::read_dir(system.join("boot")).ok()?;
        entries
            .flatten()
            .map(|entry| entry.path())
            .find(|path| path.file_name().is_some_and(|file| file.to_string_lossy().starts_with(name)))
    };
    let kernel = boot("vmlinuz-").ok_or("the guest's system has no kernel")?;
    let initrd = boot("initrd.img-").ok_or("the guest's system has no initrd")?;
    let image = debian::folder(places).join("guest.ext4");
    let units = system.join("etc/systemd/system");
    let same_unit = std::fs::read_to_string(units.join("guest.service")).is_ok_and(|there| there == UNIT);
    if image.is_file() && same_unit {
        return Ok(Disk { image, kernel, initrd });
    }
    let wants = units.join("multi-user.target.wants");
    let unfinished = debian::folder(places).join("guest.ext4.unfinished");
    let written = std::fs::write(units.join("guest.service"), UNIT)
        .and_then(|()| std::fs::write(system.join("etc/fstab"), "/dev/vda / ext4 defaults 0 1\n"))
        .and_then(|()| std::fs::create_dir_all(&wants));
    written.map_err(|error| format!("{}: {error}", units.display()))?;
    let link = |to: &str, at: &Path| Command::new("ln", places).args(["-sf", to]).arg(at).passes();
    let made = link("../guest.service", &wants.join("guest.service"))
        // The console is for what guest.sh prints.
        && link("/dev/null", &units.join("serial-getty@ttyS0.service"))
        && Command::new("mke2fs", places)
            .args(["-q", "-F", "-t", "ext4", "-d"])
            .arg(&system)
            .arg(&unfinished)
            .arg("3G")
            .passes();
    if !made {
        return Err("the guest's disk cannot be made".to_owned());
    }
    std::fs::rename(&unfinished, &image).map_err(|error| format!("{}: {error}", image.display()))?;
    Ok(Disk { image, kernel, initrd })
}

/// The second disk: an archive of what the guest runs.
fn load(places: &Places, options: &Options, package: &Path, loadtest: &Path) -> Result<PathBuf, String> {
    let folder = debian::folder(places).join("guest-load");
    if !debian::remove(places, &folder) {
        return Err(format!("{} cannot be removed", folder.display()));
    }
    let tests = places.root.join("deploy/tests");
    let newer = package::newer(places, package)?;
    let Options { connections, fill, .. } = options;
    let settings = format!("connections={connections}\nfill={fill}\n");
    let put = |from: &Path, name: &str| std::fs::copy(from, folder.join(name)).map(|_| ());
    std::fs::create_dir_all(&folder)
        .and_then(|()| put(package, "old.deb"))
        .and_then(|()| put(&newer, "new.deb"))
        .and_then(|()| put(loadtest, "cableway-loadtest"))
        .and_then(|()| put(&tests.join("checks.sh"), "checks.sh"))
        .and_then(|()| put(&tests.join("guest.sh"), "guest.sh"))
        .and_then(|()| std::fs::write(folder.join("settings.sh"), settings))
        .map_err(|error| format!("{}: {error}", folder.display()))?;
    let archive = debian::folder(places).join("guest-load.tar");
    let packed = Command::new("tar", places).arg("-cf").arg(&archive).arg("-C").arg(&folder).arg(".").passes();
    if packed { Ok(archive) } else { Err("tar failed".to_owned()) }
}

/// The machine, with its console on standard output. It has no network card.
fn boot(places: &Places, options: &Options, disk: &Disk, load: &Path) -> Command {
    let drive = |file: &Path, how: &str| format!("file={},format=raw,if=virtio,{how}", file.display());
    // An ordinary kernel runs under KVM only where the processor helps; /dev/kvm alone does not say so.
    let processor = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let helps = processor.split_whitespace().any(|flag| flag == "vmx" || flag == "svm");
    let accelerator = if helps && Path::new("/dev/kvm").exists() { "kvm" } else { "tcg,thread=multi" };
    Command::new("timeout", places)
        .args([&options.seconds, "qemu-system-x86_64", "-accel", accelerator, "-cpu", "max"])
        .args(["-smp", &options.cpus, "-m", &options.memory_mib])
        .arg("-kernel")
        .arg(&disk.kernel)
        .arg("-initrd")
        .arg(&disk.initrd)
        .args(["-append", "root=/dev/vda rw console=ttyS0 quiet panic=-1 systemd.show_status=no"])
        .args(["-drive", &drive(&disk.image, "snapshot=on"), "-drive", &drive(load, "readonly=on")])
        .args(["-nic", "none", "-display", "none", "-monitor", "none", "-serial", "stdio", "-no-reboot"])
}
