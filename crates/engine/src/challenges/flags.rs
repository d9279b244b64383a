//! Flags: what an owner's stack of a challenge is told, and whether somebody has found it.

use std::sync::Arc;

use stackd_core::Secret;
use stackd_core::challenge::{Challenge, ChallengeRef, Subject};
use stackd_core::spec::SecretVariable;
use subtle::ConstantTimeEq;

use super::{Challenges, DIALECT};
use crate::view::View;

/// Whether a flag is right cannot be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FlagError {
    /// There is no such challenge.
    #[error("challenge not found")]
    NotFound,
    /// The challenge has none.
    #[error("challenge has no flag")]
    NoFlag,
    /// It is derived from a secret that this server does not have any more.
    #[error("flags cannot be derived: no flag_secret is set")]
    NoSecret,
}

/// The variables with the flag of an owner; none where the challenge has no flag.
pub(super) fn variables(
    view: &View,
    challenge: &Challenge,
    owner: &Subject,
) -> Result<Vec<SecretVariable>, FlagError> {
    match flag(view, challenge, owner) {
        Ok((flag, value)) => Ok(flag.variables(&value)),
        Err(FlagError::NoFlag) => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

fn flag(
    view: &View,
    challenge: &Challenge,
    owner: &Subject,
) -> Result<(stackd_core::challenge::Flag, Secret), FlagError> {
    let flag = challenge.definition.flag().map_err(|error| {
        tracing::error!(challenge = %challenge.id(), error, "the flag cannot be read");
        FlagError::NoSecret
    })?;
    let flag = flag.ok_or(FlagError::NoFlag)?;
    let secret = view.config.challenges.flag_secret.as_ref();
    let value = flag.of(secret, challenge.id(), owner).ok_or(FlagError::NoSecret)?;
    Ok((flag, value))
}

impl Challenges<'_> {
    /// Whether a text is the flag of one of these owners: the one that their next stack would be
    /// told, or the one that their live stack was.
    pub fn is_flag(
        &self,
        name: &ChallengeRef,
        owners: &[Subject],
        text: &str,
    ) -> Result<bool, FlagError> {
        let view = self.view();
        let challenge = view.board.find(name).ok_or(FlagError::NotFound)?;
        let mut right = false;
        for owner in owners {
            let (_, value) = flag(view, &challenge, owner)?;
            for known in told(view, &challenge, owner).into_iter().chain([value]) {
                right |= bool::from(known.expose().as_bytes().ct_eq(text.as_bytes()));
            }
        }
        Ok(right)
    }
}

/// What the owner's live stack was told.
fn told(view: &Arc<View>, challenge: &Challenge, owner: &Subject) -> Vec<Secret> {
    let (live, slot) = (view.live.read(), challenge.number.to_string());
    let mut stacks = live.of_tenant(DIALECT, &owner.to_string());
    let live = stacks.find(|live| live.stack.owner.slot == slot && live.stack.is_active());
    let secrets = live.map(|live| live.stack.spec.secrets.iter().map(|s| s.value.clone()));
    secrets.into_iter().flatten().collect()
}
