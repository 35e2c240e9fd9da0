//! Threads that share the tasks of one kernel call. The caller is thread 0 and takes its share.
//!
//! A call costs well under a microsecond of overhead while the workers spin, which they do for [`SPIN`] after the last
//! call; then they park, and an idle pool uses no processor time. The caller waits only for workers that joined its
//! run, never for one that is still waking up: with `state` it opens a run, workers join while it is open, and the
//! caller closes it when the tasks are used up.

use std::any::Any;
use std::cell::UnsafeCell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::KernelsError;

/// How long a worker without work spins before it parks: longer than the gaps between the kernels of one step (a few
/// microseconds), shorter than the gaps between steps of an idle engine.
const SPIN: Duration = Duration::from_micros(100);
/// Spins between two looks at the clock, which costs as much as several of them.
const SPINS_PER_LOOK: u32 = 32;
/// Spins of the caller before it yields its core to a worker that lost its own.
const SPINS_BEFORE_YIELD: u32 = 2000;

/// `state`: run number in the upper half, then these flags, then the number of workers inside the run.
const RUN_SHIFT: u32 = 32;
const OPEN: u64 = 1 << 31;
const SHUTDOWN: u64 = 1 << 30;
const JOINED: u64 = SHUTDOWN - 1;

/// Persistent threads that run the tasks of one call together.
pub struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
}

impl Pool {
    /// Starts `num_threads - 1` workers; the caller of [`Pool::run`] is the remaining thread.
    ///
    /// **Errors**: `num_threads` is 0, or the system refuses a thread.
    pub fn new(num_threads: usize) -> Result<Pool, KernelsError> {
        if num_threads == 0 {
            return Err(KernelsError::NoThreads);
        }
        let mut pool = Pool { shared: Arc::new(Shared::new()), workers: Vec::new() };
        for index in 1..num_threads {
            let shared = Arc::clone(&pool.shared);
            let worker = std::thread::Builder::new()
                .name(format!("bespoke-kernels-{index}"))
                .spawn(move || shared.work())
                .map_err(|source| KernelsError::Spawn { index, source })?;
            pool.workers.push(worker);
        }
        Ok(pool)
    }

    /// Number of threads, the caller included.
    pub fn num_threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Runs `task(i)` for every `i` in `0..num_tasks`, in any order and on any thread, and returns when all are done.
    ///
    /// A call from inside a task, or while another thread's call runs, does its tasks on the calling thread.
    ///
    /// **Panics** with the first panic of a task; tasks not yet begun are skipped, and the pool stays usable.
    pub fn run(&self, num_tasks: usize, task: impl Fn(usize) + Sync) {
        let alone = self.workers.is_empty() || num_tasks <= 1;
        if alone || self.shared.busy.swap(true, Ordering::Acquire) {
            (0..num_tasks).for_each(task);
            return;
        }
        let panic = self.shared.run(Job::new(num_tasks, &task));
        self.shared.busy.store(false, Ordering::Release);
        if let Some(payload) = panic {
            resume_unwind(payload);
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.state.0.fetch_or(SHUTDOWN, Ordering::SeqCst);
        self.shared.wake_sleepers();
        for worker in self.workers.drain(..) {
            // A worker catches the panics of its tasks, so it has none of its own to report.
            let _ = worker.join();
        }
    }
}

/// A task without its lifetime: `data` is the closure, `call` runs it.
#[derive(Clone, Copy)]
struct Job {
    num_tasks: usize,
    data: *const (),
    call: unsafe fn(*const (), usize),
}

impl Job {
    fn new<F: Fn(usize) + Sync>(num_tasks: usize, task: &F) -> Job {
        /// # Safety
        /// `data` points to a live `F`.
        unsafe fn call<F: Fn(usize)>(data: *const (), index: usize) {
            // SAFETY: the caller's promise.
            let task = unsafe { &*data.cast::<F>() };
            task(index);
        }
        Job { num_tasks, data: std::ptr::from_ref(task).cast(), call: call::<F> }
    }
}

type Panic = Box<dyn Any + Send>;

/// Keeps counters that different threads write on different cache lines.
#[repr(align(128))]
struct Padded<T>(T);

struct Shared {
    state: Padded<AtomicU64>,
    next_task: Padded<AtomicUsize>,
    /// Whether some thread is inside `run`; it alone writes `job` and opens runs.
    busy: AtomicBool,
    job: UnsafeCell<Option<Job>>,
    panic: Mutex<Option<Panic>>,
    num_sleepers: AtomicUsize,
    sleep: Mutex<()>,
    wake: Condvar,
}

// SAFETY: `job` is written only by the thread that holds `busy`, while no worker is inside a run, and read only by
// workers that joined the run opened after that write; `state` orders the two. What `Job::data` points to is `Sync`.
unsafe impl Sync for Shared {}
// SAFETY: as above; nothing in it belongs to one thread.
unsafe impl Send for Shared {}

impl Shared {
    fn new() -> Shared {
        Shared {
            state: Padded(AtomicU64::new(0)),
            next_task: Padded(AtomicUsize::new(0)),
            busy: AtomicBool::new(false),
            job: UnsafeCell::new(None),
            panic: Mutex::new(None),
            num_sleepers: AtomicUsize::new(0),
            sleep: Mutex::new(()),
            wake: Condvar::new(),
        }
    }

    /// The caller's side of a run; `busy` is held.
    fn run(&self, job: Job) -> Option<Panic> {
        // SAFETY: `busy` is held and the last run was closed and left by all, so nobody reads the job.
        unsafe { *self.job.get() = Some(job) };
        self.next_task.0.store(0, Ordering::Relaxed);
        let run = (self.state.0.load(Ordering::Relaxed) >> RUN_SHIFT).wrapping_add(1);
        self.state.0.store(run << RUN_SHIFT | OPEN, Ordering::SeqCst);
        self.wake_sleepers();
        self.drain(job);
        self.state.0.fetch_and(!OPEN, Ordering::AcqRel);
        let mut spins = 0;
        while self.state.0.load(Ordering::Acquire) & JOINED != 0 {
            spins += 1;
            if spins < SPINS_BEFORE_YIELD { std::hint::spin_loop() } else { std::thread::yield_now() }
        }
        lock(&self.panic).take()
    }

    /// Takes tasks until none is left.
    fn drain(&self, job: Job) {
        let result = catch_unwind(AssertUnwindSafe(|| {
            loop {
                let index = self.next_task.0.fetch_add(1, Ordering::Relaxed);
                if index >= job.num_tasks {
                    return;
                }
                // SAFETY: `run` does not return, and so the closure lives, until every thread has left this function.
                unsafe { (job.call)(job.data, index) };
            }
        }));
        if let Err(payload) = result {
            self.next_task.0.store(job.num_tasks, Ordering::Relaxed);
            lock(&self.panic).get_or_insert(payload);
        }
    }

    /// A worker's life.
    fn work(&self) {
        let mut seen_run = 0;
        while let Some(run) = self.join_run(seen_run) {
            seen_run = run;
            // SAFETY: having joined, this thread sees the job written before the run was opened, and `run` writes
            // no other until this thread has left.
            let job = unsafe { *self.job.get() };
            self.drain(job.expect("invariant: an open run has a job"));
            self.state.0.fetch_sub(1, Ordering::Release);
        }
    }

    /// Waits for a run after `seen_run`, joins it and returns its number; `None` at shutdown.
    fn join_run(&self, mut seen_run: u64) -> Option<u64> {
        let mut idle_since = Instant::now();
        let mut spins = 0;
        loop {
            let state = self.state.0.load(Ordering::Acquire);
            let run = state >> RUN_SHIFT;
            if state & SHUTDOWN != 0 {
                return None;
            }
            if run != seen_run && state & OPEN != 0 {
                if self.state.0.compare_exchange(state, state + 1, Ordering::AcqRel, Ordering::Relaxed).is_ok() {
                    return Some(run);
                }
                continue;
            }
            if run != seen_run {
                // The run ended before this worker came: there is activity, so keep spinning.
                (seen_run, idle_since) = (run, Instant::now());
            }
            spins += 1;
            if spins % SPINS_PER_LOOK == 0 && idle_since.elapsed() > SPIN {
                self.park(seen_run);
                idle_since = Instant::now();
            }
            std::hint::spin_loop();
        }
    }

    /// Sleeps until a run after `seen_run` is open, or shutdown.
    fn park(&self, seen_run: u64) {
        let mut guard = lock(&self.sleep);
        // Sequentially consistent with the store and load in `run`: either this worker sees the open run below, or
        // the caller sees this sleeper and notifies it.
        self.num_sleepers.fetch_add(1, Ordering::SeqCst);
        loop {
            let state = self.state.0.load(Ordering::SeqCst);
            if state & SHUTDOWN != 0 || (state & OPEN != 0 && state >> RUN_SHIFT != seen_run) {
                break;
            }
            guard = self.wake.wait(guard).unwrap_or_else(PoisonError::into_inner);
        }
        self.num_sleepers.fetch_sub(1, Ordering::SeqCst);
    }

    fn wake_sleepers(&self) {
        if self.num_sleepers.load(Ordering::SeqCst) > 0 {
            // Taking the lock waits until a worker between its check and its sleep is asleep.
            drop(lock(&self.sleep));
            self.wake.notify_all();
        }
    }
}

/// No code panics while it holds one of these locks, so a poisoned one is still sound.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sum(pool: &Pool, num_tasks: usize) -> usize {
        let total = AtomicUsize::new(0);
        pool.run(num_tasks, |i| {
            total.fetch_add(i + 1, Ordering::Relaxed);
        });
        total.into_inner()
    }

    #[test]
    fn every_task_runs_once() {
        for num_threads in 1..=4 {
            let pool = Pool::new(num_threads).unwrap();
            for num_tasks in [0, 1, 2, 3, 7, 100, 1000] {
                assert_eq!(sum(&pool, num_tasks), num_tasks * (num_tasks + 1) / 2);
            }
        }
    }

    #[test]
    fn many_short_runs_and_parks_between() {
        let pool = Pool::new(3).unwrap();
        for round in 0..3000 {
            assert_eq!(sum(&pool, 5), 15);
            if round % 500 == 0 {
                std::thread::sleep(SPIN * 5);
            }
        }
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_pool_survives() {
        let pool = Pool::new(2).unwrap();
        for bad in [0, 3, 63] {
            let result = catch_unwind(AssertUnwindSafe(|| pool.run(64, |i| assert_ne!(i, bad, "task {bad}"))));
            let payload = result.unwrap_err();
            assert!(payload.downcast_ref::<String>().unwrap().contains(&format!("task {bad}")));
            assert_eq!(sum(&pool, 10), 55);
        }
    }

    #[test]
    fn nested_and_concurrent_runs_do_not_deadlock() {
        let pool = Pool::new(2).unwrap();
        let total = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    for _ in 0..200 {
                        pool.run(4, |_| {
                            total.fetch_add(sum(&pool, 3), Ordering::Relaxed);
                        });
                    }
                });
            }
        });
        assert_eq!(total.into_inner(), 3 * 200 * 4 * 6);
    }

    #[test]
    fn no_threads_is_an_error() {
        assert!(matches!(Pool::new(0), Err(KernelsError::NoThreads)));
    }
}
