//! Measures stackd from outside, as a user meets it: `bench/run` builds and runs everything.
//!
//! Every figure in the README and the documentation comes from here. A run prints medians; where a
//! Docker engine can be started (`dockerd` on the path), the same is done with it in the same run,
//! and the ratio is what counts: machines differ.

mod docker;
mod failover;
mod http;
mod kubernetes;
mod player;
mod reads;
mod server;
mod starts;
mod stats;

use anyhow::{Result, bail};

fn main() -> Result<()> {
    let mut what: Vec<String> = std::env::args().skip(1).collect();
    if what.is_empty() {
        what = ["starts", "burst", "reads", "player", "failover", "docker", "kubernetes"]
            .map(str::to_owned)
            .to_vec();
    }
    let mut start = None;
    for part in what {
        match part.as_str() {
            "starts" => start = Some(starts::one_after_another(100)?),
            "burst" => starts::at_once(100)?,
            "reads" => reads::from_memory()?,
            "player" => player::reads_and_creates()?,
            "failover" => {
                failover::of_the_leader()?;
                failover::on_a_cluster()?;
            }
            "docker" => docker::compare(start.as_ref())?,
            "kubernetes" => kubernetes::beside_a_plain_client()?,
            other => {
                bail!(
                    "unknown part {other:?}; there are: starts, burst, reads, player, failover, docker, kubernetes"
                )
            }
        }
    }
    Ok(())
}
