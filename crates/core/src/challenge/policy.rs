//! What an operator may set about challenges.

use serde::{Deserialize, Serialize};

use crate::secret::Secret;

/// What challenges may ask for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ChallengePolicy {
    /// The CPU cores that a challenge may ask for; any number above 0 where empty.
    pub cpu_counts: Vec<u32>,
    /// The memory that a challenge may ask for, in MB; any number above 0 where empty.
    pub memory_mbs: Vec<u32>,
    /// Pull a challenge's images as soon as it is written, and all challenges' images at the start.
    pub warm: bool,
    /// What the flags of owners are derived from; challenges cannot have such flags without it.
    pub flag_secret: Option<Secret>,
}

/// The fewest bytes of [`ChallengePolicy::flag_secret`]: what can be guessed makes every flag known.
const MIN_FLAG_SECRET: usize = 32;

impl ChallengePolicy {
    /// Refuses what cannot be meant.
    pub fn check(&self) -> Result<(), String> {
        match &self.flag_secret {
            Some(secret) if secret.expose().len() < MIN_FLAG_SECRET => {
                Err(format!("flag_secret must have at least {MIN_FLAG_SECRET} bytes"))
            }
            _ => Ok(()),
        }
    }
}

impl Default for ChallengePolicy {
    fn default() -> Self {
        Self {
            cpu_counts: vec![1, 2, 4],
            memory_mbs: vec![512, 1024, 2048],
            warm: false,
            flag_secret: None,
        }
    }
}
