//! Limits of control groups, of both versions (cgroups(7), Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/memory.rst).

use serde::{Deserialize, Serialize};

use super::files::Files;

/// A limit of memory. Both versions count the kernel's memory for sockets into it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Cgroup {
    /// 1 or 2.
    pub version: u8,
    /// Bytes that the group may use.
    pub limit_bytes: u64,
    /// Bytes that it uses.
    pub used_bytes: u64,
}

/// More than this is version 1's word for no limit, whatever the page size.
const NO_LIMIT: u64 = 1 << 62;

/// Directories from a group up to the root, in each place where its hierarchy may be mounted. `controller` is that of
/// version 1; `None` is version 2.
fn places(files: &Files, process: &str, controller: Option<&str>) -> Vec<String> {
    let text = files.text(&format!("proc/{process}/cgroup")).unwrap_or_default();
    let path = text.lines().find_map(|line| {
        let mut parts = line.splitn(3, ':').skip(1);
        let (names, path) = (parts.next()?, parts.next()?);
        match controller {
            Some(wanted) => names.split(',').any(|name| name == wanted).then_some(path),
            None => names.is_empty().then_some(path),
        }
    });
    let Some(path) = path else { return Vec::new() };
    let mounts = match controller {
        Some(name) => vec![format!("sys/fs/cgroup/{name}")],
        None => vec!["sys/fs/cgroup".to_owned(), "sys/fs/cgroup/unified".to_owned()],
    };
    let mut places = Vec::new();
    for mount in mounts {
        let mut path = path.trim_matches('/');
        // A container sees its own group as the root, under the path that it has outside: both are looked at.
        loop {
            places.push(if path.is_empty() { mount.clone() } else { format!("{mount}/{path}") });
            if path.is_empty() {
                break;
            }
            path = path.rsplit_once('/').map_or("", |(above, _)| above);
        }
    }
    places
}

/// The group with the least room, of those that hold the process.
pub(super) fn memory(files: &Files, process: &str) -> Option<Cgroup> {
    let read = |version, place: &str, limit: &str, used: &str| {
        let limit_bytes = files.number(&format!("{place}/{limit}")).filter(|bytes| *bytes < NO_LIMIT)?;
        let used_bytes = files.number(&format!("{place}/{used}")).unwrap_or(0);
        Some(Cgroup { version, limit_bytes, used_bytes })
    };
    let second = places(files, process, None).into_iter();
    let second = second.filter_map(|place| read(2, &place, "memory.max", "memory.current"));
    let first = places(files, process, Some("memory")).into_iter();
    let first = first.filter_map(|place| read(1, &place, "memory.limit_in_bytes", "memory.usage_in_bytes"));
    second.chain(first).min_by_key(|group| group.limit_bytes.saturating_sub(group.used_bytes))
}

/// Cores that the groups allow, where they bound them.
pub(super) fn cores(files: &Files, process: &str) -> Option<f64> {
    let second = places(files, process, None).into_iter().filter_map(|place| {
        let text = files.text(&format!("{place}/cpu.max"))?;
        let (quota, period) = text.split_once(' ')?;
        Some((quota.parse::<f64>().ok()?, period.parse::<f64>().ok()?))
    });
    let first = places(files, process, Some("cpu")).into_iter().filter_map(|place| {
        let quota = files.number::<f64>(&format!("{place}/cpu.cfs_quota_us")).filter(|quota| *quota > 0.0)?;
        Some((quota, files.number(&format!("{place}/cpu.cfs_period_us"))?))
    });
    second.chain(first).filter(|(_, period)| *period > 0.0).map(|(quota, period)| quota / period).min_by(f64::total_cmp)
}
