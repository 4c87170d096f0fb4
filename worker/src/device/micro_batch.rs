//! How many tokens a GPU computes at once in training: as many as fit into its memory, found by trying.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};

thread_local! {
    static IS_TRYING: Cell<bool> = const { Cell::new(false) };
}

/// The largest of `whole`, half of it, a quarter … that `fits`, and at least `least`, which is taken without trying.
///
/// # Errors
/// Whatever went wrong other than that there was not enough memory.
pub fn tokens_that_fit<E>(
    whole: usize,
    least: usize,
    mut fits: impl FnMut(usize) -> Result<bool, E>,
) -> Result<usize, E> {
    let mut tokens = whole.max(least);
    while tokens > least && !fits(tokens)? {
        tokens = (tokens / 2).max(least);
    }
    Ok(tokens)
}

/// Whether this thread is trying something that may well panic, which is no reason to end the job.
pub fn is_trying() -> bool {
    IS_TRYING.get()
}

/// Does `work`; none if a device had not enough memory for it, which tch tells by a panic and the shim by an error.
///
/// # Errors
/// Another error of `work`.
pub(super) fn unless_out_of_memory<T>(work: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<Option<T>> {
    const WORDS: &str = "out of memory";
    IS_TRYING.set(true);
    let done = catch_unwind(AssertUnwindSafe(work));
    IS_TRYING.set(false);
    match done {
        Ok(Ok(done)) => Ok(Some(done)),
        Ok(Err(error)) if format!("{error:#}").contains(WORDS) => Ok(None),
        Ok(Err(error)) => Err(error),
        Err(panic) => {
            let text = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
            if text.is_some_and(|text| text.contains(WORDS)) {
                return Ok(None);
            }
            std::panic::resume_unwind(panic)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_until_it_fits() {
        let of = |whole, room: usize| tokens_that_fit(whole, 128, |n| Ok::<_, ()>(n <= room)).unwrap();
        assert_eq!((of(4096, 10_000), of(4096, 1500), of(4096, 1), of(60, 1)), (4096, 1024, 128, 128));
        assert_eq!(tokens_that_fit(512, 128, |_| Err("broken")), Err("broken"));
    }

    #[test]
    fn a_lack_of_memory_is_told_from_other_panics() {
        assert_eq!(unless_out_of_memory(|| Ok(7)).unwrap(), Some(7));
        let message = "called `Result::unwrap()` on an `Err` value: Torch(\"CUDA out of memory. Tried to allocate\")";
        assert_eq!(unless_out_of_memory(|| -> anyhow::Result<i32> { panic!("{message}") }).unwrap(), None);
        assert_eq!(unless_out_of_memory(|| -> anyhow::Result<i32> { anyhow::bail!("{message}") }).unwrap(), None);
        assert!(!is_trying());
        assert!(catch_unwind(|| unless_out_of_memory(|| -> anyhow::Result<i32> { panic!("something else") })).is_err());
        assert!(unless_out_of_memory(|| -> anyhow::Result<i32> { anyhow::bail!("something else") }).is_err());
    }
}
