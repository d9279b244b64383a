//! Parameters of a query, read one by one, so that a wrong one is refused in the dialect's words
//! and an unknown one is ignored.

use std::convert::Infallible;
use std::time::Duration;

use axum::extract::{FromRequestParts, Path};
use axum::http::request::Parts;
use stackd_core::duration;

use crate::fault::Fault;

/// The variable part of a path; empty, which names nothing, where it is not text.
#[derive(Debug)]
pub(crate) struct PathText(pub(crate) String);

impl<S: Send + Sync> FromRequestParts<S> for PathText {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Infallible> {
        let text = Path::<String>::from_request_parts(parts, state).await;
        Ok(Self(text.map_or_else(|_| String::new(), |Path(text)| text)))
    }
}

/// The query of a request, decoded.
#[derive(Debug, Default)]
pub(crate) struct Params(Vec<(String, String)>);

impl<S: Sync> FromRequestParts<S> for Params {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        Ok(Self::read(parts.uri.query().unwrap_or_default()))
    }
}

impl Params {
    pub(crate) fn read(query: &str) -> Self {
        Self(form_urlencoded::parse(query.as_bytes()).into_owned().collect())
    }

    /// Every value of a parameter, in order.
    pub(crate) fn all<'a, 'n>(
        &'a self,
        name: &'n str,
    ) -> impl Iterator<Item = &'a str> + use<'a, 'n> {
        self.0.iter().filter(move |(n, _)| n == name).map(|(_, value)| value.as_str())
    }

    /// The first value of a parameter; blank counts as not there.
    pub(crate) fn one(&self, name: &str) -> Option<&str> {
        self.all(name).map(str::trim).find(|value| !value.is_empty())
    }

    /// A switch: absent is off, present without a value is on.
    pub(crate) fn switch(&self, name: &str) -> Result<bool, Fault> {
        match self.all(name).next().map(str::trim) {
            None | Some("false" | "0") => Ok(false),
            Some("" | "true" | "1") => Ok(true),
            Some(_) => Err(Fault::input(format_args!("{name} must be true or false"))),
        }
    }

    /// A whole number within bounds.
    pub(crate) fn number(&self, name: &str, min: u64, max: u64) -> Result<Option<u64>, Fault> {
        let Some(text) = self.one(name) else { return Ok(None) };
        match text.parse().ok().filter(|n| (min..=max).contains(n)) {
            Some(number) => Ok(Some(number)),
            None => {
                Err(Fault::input(format_args!("{name} must be a whole number from {min} to {max}")))
            }
        }
    }

    /// A length of time up to `max`.
    pub(crate) fn time(&self, name: &str, max: Duration) -> Result<Option<Duration>, Fault> {
        let Some(text) = self.one(name) else { return Ok(None) };
        match duration::parse(text).ok().filter(|time| *time <= max) {
            Some(time) => Ok(Some(time)),
            None => Err(Fault::input(format_args!(
                "{name} must be whole seconds or a length of time such as 30s, at most {}",
                duration::show(max)
            ))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_read_or_refused_by_name() {
        let params = Params::read("follow&tail=10&far=11&blank=%20&t=90&no=maybe&l=a%3Db&l=c");
        assert_eq!(params.switch("follow"), Ok(true));
        assert_eq!(params.switch("absent"), Ok(false));
        assert_eq!(params.switch("no"), Err(Fault::input("no must be true or false")));
        assert_eq!(params.number("tail", 0, 10), Ok(Some(10)));
        assert_eq!(params.number("blank", 0, 10), Ok(None));
        let far = Fault::input("far must be a whole number from 0 to 10");
        assert_eq!(params.number("far", 0, 10), Err(far));
        assert_eq!(params.time("t", Duration::from_secs(90)), Ok(Some(Duration::from_secs(90))));
        assert!(params.time("t", Duration::from_secs(89)).is_err());
        assert_eq!(params.all("l").collect::<Vec<_>>(), ["a=b", "c"]);
    }
}
