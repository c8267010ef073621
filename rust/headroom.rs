//! How much memory this process can still have: what the machine has left, and what its control groups allow.
//!
//! Systems grant more memory than there is and end a process when it uses it, so large requests are held against this first.

use crate::error::{Error, Result};

/// Requests below this are not looked up.
const LARGE: usize = 1 << 30;

/// Checks that `count` of `what` (an option) can be had, at `each` bytes apiece.
///
/// # Errors
/// `Option` that says how many can.
pub fn check(option: &str, what: &str, count: usize, each: usize) -> Result<()> {
    let bytes = count.saturating_mul(each);
    let Some(available) = (if bytes < LARGE { None } else { available() }) else { return Ok(()) };
    if bytes <= available {
        return Ok(());
    }
    Err(Error::Option {
        option: option.to_owned(),
        expected: format!(
            "at most {} {what} (this model takes {each} bytes for each, and {available} are left)",
            available / each
        ),
        got: count.to_string(),
    })
}

/// Bytes that this process can still have, where the system tells.
#[cfg(target_os = "linux")]
pub fn available() -> Option<usize> {
    let machine = std::fs::read_to_string("/proc/meminfo").ok()?;
    let kilobytes = |name: &str| field(&machine, name).unwrap_or(0) << 10;
    let groups = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let left = groups.lines().filter_map(group_headroom).min().unwrap_or(usize::MAX);
    Some(left.min(kilobytes("MemAvailable:") + kilobytes("SwapFree:")))
}

/// Bytes that this process can still have, where the system tells.
#[cfg(not(target_os = "linux"))]
pub fn available() -> Option<usize> {
    None
}

/// The number behind a name that begins a line.
#[cfg(target_os = "linux")]
fn field(text: &str, name: &str) -> Option<usize> {
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))?;
    line.split_whitespace().next()?.parse().ok()
}

/// What the groups of a line of /proc/self/cgroup leave, the tightest of the named one and those above it; version 2 has one
/// line for everything, version 1 one for memory.
#[cfg(target_os = "linux")]
fn group_headroom(line: &str) -> Option<usize> {
    let mut parts = line.splitn(3, ':').skip(1);
    let (controllers, path) = (parts.next()?, parts.next()?);
    let [root, limit, usage, cache] = if controllers.is_empty() {
        ["/sys/fs/cgroup", "memory.max", "memory.current", "file"]
    } else if controllers.split(',').any(|name| name == "memory") {
        ["/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_cache"]
    } else {
        return None;
    };
    let group = std::path::Path::new(root).join(path.trim_start_matches('/'));
    let headroom = |group: &std::path::Path| {
        let read = |name| std::fs::read_to_string(group.join(name)).ok();
        let number = |name| read(name)?.trim().parse::<usize>().ok();
        // A group without a limit says "max". Files in memory are given up where there is need.
        let files = read("memory.stat").and_then(|stat| field(&stat, cache)).unwrap_or(0);
        Some(number(limit)?.saturating_sub(number(usage)?.saturating_sub(files)))
    };
    group.ancestors().take_while(|group| group.starts_with(root)).filter_map(headroom).min()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_than_any_machine_has_is_refused() {
        check("rows", "rows", 1 << 20, 1 << 5).unwrap();
        if available().is_some() {
            let error = check("rows", "rows", 1 << 40, 1 << 20).unwrap_err();
            let Error::Option { option, expected, got } = error else { panic!("{error:?}") };
            assert_eq!((&*option, &*got), ("rows", "1099511627776"), "what was asked for");
            assert!(expected.starts_with("at most "), "{expected}");
            check("rows", "rows", usize::MAX, usize::MAX).unwrap_err();
        }
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn this_process_can_have_some() {
        let most = field(&std::fs::read_to_string("/proc/meminfo").unwrap(), "MemTotal:").unwrap() << 10;
        let swap = field(&std::fs::read_to_string("/proc/meminfo").unwrap(), "SwapTotal:").unwrap() << 10;
        let available = available().unwrap();
        assert!(available > 1 << 20 && available <= most + swap, "{available} of {most}");
        assert_eq!(field("a: 1\nab: 2 kB\n", "ab:"), Some(2), "whole names");
    }
}
