//! What has passed and failed so far, one line each as it happens.

use std::time::Instant;

#[derive(Default)]
pub(super) struct Tally {
    pub(super) passed: usize,
    pub(super) failed: usize,
}

impl Tally {
    pub(super) fn one(&mut self, name: &str, outcome: &Result<(), String>, started: Instant) {
        let seconds = started.elapsed().as_secs_f64();
        match outcome {
            Ok(()) => {
                self.passed += 1;
                say!("ok      {name} ({seconds:.1} s)");
            }
            Err(why) => {
                self.failed += 1;
                say!("FAILED  {name} ({seconds:.1} s)\n{why}");
            }
        }
    }
}
