//! What the cluster gives.

use stackd_core::spec::Requested;
use stackd_runtimes::kubernetes::{Finding, Rating, inspect};

use super::{Check, Status};
use crate::config::Config;

pub(super) async fn checks(config: &Config, size: &Requested, probed: bool) -> Vec<Check> {
    crate::client::use_ring();
    let settings = crate::serve::kubernetes(config);
    let found = inspect(&settings, size).await;
    let answers = found.len() > 1;
    let mut checks: Vec<_> = found.into_iter().map(check).collect();
    if answers && !probed {
        checks.push(Check::warning(
            "network policy",
            "whether the cluster's network enforces it was not tried",
            "try it with --probe and --probe-image: without it, stacks reach each other",
        ));
    }
    checks
}

fn check(found: Finding) -> Check {
    let status = match found.rating {
        Rating::Good => Status::Ok,
        Rating::Poor => Status::Warning,
        Rating::Bad => Status::Failed,
    };
    let fix = (!found.fix.is_empty()).then_some(found.fix);
    Check { name: found.name.to_owned(), status, detail: found.detail, fix }
}
