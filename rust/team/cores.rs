//! The cores that this process may use: its affinity mask, its cgroup's quota, one thread per physical core.

/// Threads that a model takes when none are asked for: cores that the affinity mask and the cgroup quota leave to this
/// process, one per physical core.
pub fn default_threads() -> usize {
    let allowed = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    allowed.min(physical_cores().unwrap_or(allowed)).max(1)
}

/// Distinct physical cores in the affinity mask, where the system tells.
#[cfg(target_os = "linux")]
fn physical_cores() -> Option<usize> {
    // SAFETY: the set is plain memory that the call fills.
    let set = unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        if libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &raw mut set) != 0 {
            return None;
        }
        set
    };
    let mut cores = std::collections::BTreeSet::new();
    for cpu in 0..libc::CPU_SETSIZE.unsigned_abs() as usize {
        // SAFETY: `cpu` is below the size of the set.
        if unsafe { libc::CPU_ISSET(cpu, &set) } {
            let path = format!("/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list");
            cores.insert(std::fs::read_to_string(path).ok()?);
        }
    }
    (!cores.is_empty()).then_some(cores.len())
}

/// Distinct physical cores in the affinity mask, where the system tells.
#[cfg(not(target_os = "linux"))]
fn physical_cores() -> Option<usize> {
    None
}
