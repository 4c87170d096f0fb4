//! What this host's kernel says: of a process, and of its own lack of memory.

use std::fs;

/// What a process is doing, as the kernel sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProcessState {
    /// It runs, or waits for something that can be interrupted.
    Alive,
    /// It was stopped by a signal or is being traced.
    Stopped,
    /// It waits for a disk or a network file system, and cannot be interrupted.
    InDiskWait,
    /// It is not there any more.
    Gone,
}

/// Looks a process of this host up. `None` where the kernel does not tell.
pub fn process_state(pid: u32) -> Option<ProcessState> {
    if !fs::exists("/proc/self/stat").unwrap_or(false) {
        return None;
    }
    let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else { return Some(ProcessState::Gone) };
    Some(state(&stat))
}

/// The state is the first field after the program's name, which is in parentheses and may hold anything.
fn state(stat: &str) -> ProcessState {
    match stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next()) {
        Some('T' | 't') => ProcessState::Stopped,
        Some('D') => ProcessState::InDiskWait,
        Some('Z' | 'X') => ProcessState::Gone,
        _ => ProcessState::Alive,
    }
}

/// How many processes the kernel has killed for lack of memory since it started.
pub fn out_of_memory_kills() -> u64 {
    let text = fs::read_to_string("/proc/vmstat").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
    line.and_then(|n| n.trim().parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_are_read_past_any_name() {
        assert_eq!(state("12 (a) T (b)) T 1 2"), ProcessState::Stopped);
        assert_eq!(state("12 (bam-worker) D 1 2"), ProcessState::InDiskWait);
        assert_eq!(state("12 (bam-worker) Z 1 2"), ProcessState::Gone);
        assert_eq!(state("12 (bam-worker) S 1 2"), ProcessState::Alive);
        assert_eq!(process_state(std::process::id()), Some(ProcessState::Alive));
        // Above the largest number that Linux gives.
        assert_eq!(process_state(u32::MAX), Some(ProcessState::Gone));
    }
}
