//! What a player may do: the order in which it is decided, and nothing else.

use std::fmt;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use serde_json::Value;

use super::Challenge;

/// A user or a team of the platform. What owns stacks, solves challenges, and finds them locked.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Subject {
    /// One player.
    User(String),
    /// A team.
    Team(String),
}

/// The most characters of a user's or a team's name.
pub const MAX_SUBJECT: usize = 255;

impl Subject {
    /// The name of somebody as platforms write it: a text, or a whole number, which is the same as its
    /// text. None where it is not one line of 1 to [`MAX_SUBJECT`] characters that is not blank. It stays
    /// as it is written, so that it means the same wherever the platform says it.
    pub fn name_of(value: &Value) -> Option<String> {
        let name = match value {
            Value::String(text) => text.clone(),
            Value::Number(number) if number.is_i64() || number.is_u64() => number.to_string(),
            Value::Number(number) => {
                let whole = number.as_f64().filter(|n| n.fract() == 0.0 && n.abs() < 9e15)?;
                format!("{whole:.0}")
            }
            _ => return None,
        };
        let is_short = name.chars().take(MAX_SUBJECT + 1).count() <= MAX_SUBJECT;
        let is_line = !name.trim().is_empty() && !name.chars().any(char::is_control);
        (is_short && is_line).then_some(name)
    }

    /// `user` or `team`.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::User(_) => "user",
            Self::Team(_) => "team",
        }
    }

    /// The platform's own name for it.
    pub fn name(&self) -> &str {
        match self {
            Self::User(name) | Self::Team(name) => name,
        }
    }

    /// Reads what [`Subject::kind`] and [`Subject::name`] give.
    pub fn of(kind: &str, name: String) -> Option<Self> {
        match kind {
            "user" => Some(Self::User(name)),
            "team" => Some(Self::Team(name)),
            _ => None,
        }
    }
}

/// The two never meet: `user:7` is not `team:7`.
impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.kind(), self.name())
    }
}

/// Who plays.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Player {
    /// The user, as the platform names it.
    pub user: String,
    /// The user's team, where the platform tells.
    pub team: Option<String>,
    /// Whose the stacks are: the user's or the team's.
    pub owner: Subject,
}

/// What is known when a player asks for a stack of a challenge.
#[derive(Debug, Clone, Copy)]
pub struct Situation<'a> {
    /// The challenge, where there is one.
    pub challenge: Option<&'a Challenge>,
    /// The player or the player's team has solved it.
    pub solved: bool,
    /// It is locked for the player or the player's team.
    pub locked: bool,
    /// The owner has a live stack of it.
    pub has_live: bool,
    /// How many live stacks the owner has in all.
    pub live_stacks: usize,
    /// How many the owner may have.
    pub max_stacks: usize,
    /// The user may make another stack now.
    pub rate_left: bool,
}

/// Why a player does not get a stack.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// There is no such challenge, or it is not enabled.
    #[error("challenge not found")]
    NotFound,
    /// Players start no stacks of it.
    #[error("stack not enabled for challenge")]
    NotEnabled,
    /// It is solved.
    #[error("challenge already solved")]
    Solved,
    /// It is locked.
    #[error("challenge locked")]
    Locked,
    /// Too many creates within the window.
    #[error("too many submissions")]
    Rate,
    /// Too many live stacks.
    #[error("stack limit reached")]
    Limit,
}

/// Whether a player gets a new stack (`true`), or the live one there is (`false`).
pub fn admit(situation: &Situation<'_>) -> Result<bool, Refusal> {
    let challenge = situation.challenge.filter(|challenge| challenge.definition.enabled);
    let challenge = challenge.ok_or(Refusal::NotFound)?;
    if !challenge.definition.stack_enabled {
        return Err(Refusal::NotEnabled);
    }
    if situation.solved {
        return Err(Refusal::Solved);
    }
    if situation.locked {
        return Err(Refusal::Locked);
    }
    if situation.has_live {
        return Ok(false);
    }
    if !situation.rate_left {
        return Err(Refusal::Rate);
    }
    if situation.live_stacks >= situation.max_stacks {
        return Err(Refusal::Limit);
    }
    Ok(true)
}

/// When a stack ends that is extended now: `ttl` from now, at most `max_lifetime` after it was
/// made. `None` when that is not later than it ends anyway.
pub fn extended(
    created_at: Timestamp,
    expires_at: Timestamp,
    now: Timestamp,
    ttl: Duration,
    max_lifetime: Duration,
) -> Option<Timestamp> {
    let after = |from: Timestamp, by: Duration| {
        let by = SignedDuration::try_from(by).unwrap_or(SignedDuration::MAX);
        from.saturating_add(by).unwrap_or(Timestamp::MAX)
    };
    let until = after(now, ttl).min(after(created_at, max_lifetime));
    (until > expires_at).then_some(until)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::challenge::{ChallengePolicy, Draft};
    use crate::pod::PodDefaults;
    use serde_json::json;

    #[test]
    fn a_number_and_its_text_are_one_name() {
        for (value, name) in [
            (json!(7), "7"),
            (json!("7"), "7"),
            (json!(7.0), "7"),
            (json!(u64::MAX), "18446744073709551615"),
            (json!(" red "), " red "),
        ] {
            assert_eq!(Subject::name_of(&value).as_deref(), Some(name), "{value}");
        }
        for value in [
            json!(""),
            json!("  "),
            json!(7.5),
            json!(1e300),
            json!(true),
            json!(["7"]),
            json!("a\nb"),
            json!("x".repeat(MAX_SUBJECT + 1)),
        ] {
            assert_eq!(Subject::name_of(&value), None, "{value}");
        }
    }

    #[test]
    fn a_stack_is_extended_up_to_its_longest_life() {
        let at = |seconds: i64| Timestamp::from_second(seconds).unwrap();
        let (ttl, most) = (Duration::from_secs(100), Duration::from_secs(200));
        assert_eq!(extended(at(0), at(100), at(40), ttl, most), Some(at(140)));
        assert_eq!(extended(at(0), at(140), at(120), ttl, most), Some(at(200)));
        assert_eq!(extended(at(0), at(200), at(150), ttl, most), None);
        assert_eq!(extended(at(0), at(100), at(0), ttl, most), None);
        assert_eq!(
            extended(at(0), at(100), at(1), Duration::MAX, Duration::MAX),
            Some(Timestamp::MAX)
        );
    }

    #[test]
    fn each_rule_comes_before_the_ones_below_it() {
        let draft = Draft {
            id: Some("web".to_owned()),
            name: Some("Web".to_owned()),
            runtime: Some("docker".to_owned()),
            image: Some("web:1".to_owned()),
            port: Some(80),
            ..Draft::default()
        };
        let number = crate::challenge::ChallengeNumber::new(1).unwrap();
        let challenge = draft
            .check(
                number,
                &ChallengePolicy::default(),
                &PodDefaults::default(),
                Timestamp::UNIX_EPOCH,
            )
            .unwrap();
        let mut off = challenge.clone();
        off.definition.enabled = false;
        let mut closed = challenge.clone();
        closed.definition.stack_enabled = false;
        // All that can be wrong is wrong; one after the other is mended.
        let mut situation = Situation {
            challenge: None,
            solved: true,
            locked: true,
            has_live: true,
            live_stacks: 3,
            max_stacks: 3,
            rate_left: false,
        };
        assert_eq!(admit(&situation), Err(Refusal::NotFound));
        situation.challenge = Some(&off);
        assert_eq!(admit(&situation), Err(Refusal::NotFound));
        situation.challenge = Some(&closed);
        assert_eq!(admit(&situation), Err(Refusal::NotEnabled));
        situation.challenge = Some(&challenge);
        assert_eq!(admit(&situation), Err(Refusal::Solved));
        situation.solved = false;
        assert_eq!(admit(&situation), Err(Refusal::Locked));
        situation.locked = false;
        assert_eq!(admit(&situation), Ok(false));
        situation.has_live = false;
        assert_eq!(admit(&situation), Err(Refusal::Rate));
        situation.rate_left = true;
        assert_eq!(admit(&situation), Err(Refusal::Limit));
        situation.live_stacks = 2;
        assert_eq!(admit(&situation), Ok(true));
    }
}
