//! Probes, and the ports they name.

use super::error::PodError;
use super::names;
use super::read::named;
use super::tree::{Field, Object};
use crate::spec::{ContainerPort, Probe, ProbeAction, ProbePort};

const FIELDS: &[&str] = &[
    "exec",
    "httpGet",
    "tcpSocket",
    "initialDelaySeconds",
    "periodSeconds",
    "timeoutSeconds",
    "successThreshold",
    "failureThreshold",
];

/// What a probe decides.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    /// Whether the container gets traffic; may come and go.
    Readiness,
    /// Whether the container lives or has started: one success is all there is.
    Health,
}

pub(super) fn read(
    probe: &Object<'_>,
    purpose: Purpose,
    ports: &[ContainerPort],
) -> Result<Probe, PodError> {
    probe.only(FIELDS)?;
    let actions = [probe.get("exec"), probe.get("httpGet"), probe.get("tcpSocket")];
    let action = match actions {
        [Some(exec), None, None] => read_exec(&exec.object()?)?,
        [None, Some(get), None] => read_http_get(&get.object()?, ports)?,
        [None, None, Some(socket)] => {
            let socket = socket.object()?;
            socket.only(&["port"])?;
            ProbeAction::TcpSocket { port: read_port(&socket, ports)? }
        }
        _ => return Err(probe.refused("must have exactly one of exec, httpGet and tcpSocket")),
    };
    let success_threshold = number(probe, "successThreshold")?;
    if purpose == Purpose::Health
        && success_threshold.is_some_and(|threshold| threshold != 1)
        && let Some(field) = probe.get("successThreshold")
    {
        return Err(field.refused("must be 1 here"));
    }
    Ok(Probe {
        action,
        initial_delay_seconds: number(probe, "initialDelaySeconds")?,
        period_seconds: number(probe, "periodSeconds")?,
        timeout_seconds: number(probe, "timeoutSeconds")?,
        success_threshold,
        failure_threshold: number(probe, "failureThreshold")?,
    })
}

/// A count; 0 means the default, as in Kubernetes.
fn number(probe: &Object<'_>, key: &str) -> Result<Option<u32>, PodError> {
    let Some(field) = probe.get(key) else { return Ok(None) };
    match u32::try_from(field.int()?) {
        Ok(0) => Ok(None),
        Ok(number) if i32::try_from(number).is_ok() => Ok(Some(number)),
        _ => Err(field.refused("must be from 0 to 2147483647")),
    }
}

fn read_exec(exec: &Object<'_>) -> Result<ProbeAction, PodError> {
    exec.only(&["command"])?;
    match exec.argument_list("command")? {
        Some(command) => Ok(ProbeAction::Exec { command }),
        None => Err(exec.refused("must have a command")),
    }
}

fn read_http_get(get: &Object<'_>, ports: &[ContainerPort]) -> Result<ProbeAction, PodError> {
    get.only(&["path", "port", "scheme", "httpHeaders"])?;
    let path = get.text("path")?;
    if let (Some(field), Some(path)) = (get.get("path"), path)
        && path.contains(|c: char| c.is_control() || c == ' ')
    {
        return Err(field.refused("must be a path without spaces"));
    }
    let https = get.word("scheme", &[("HTTP", false), ("HTTPS", true)])?;
    let mut headers = Vec::new();
    for item in get.list("httpHeaders")? {
        let header = item.object()?;
        header.only(&["name", "value"])?;
        let name = named(&header, "name", names::header)?
            .ok_or_else(|| header.refused("must have a name"))?;
        let value = named(&header, "value", names::header_value)?.unwrap_or_default();
        headers.push((name, value));
    }
    let path = path.map(str::to_owned);
    Ok(ProbeAction::HttpGet { path, port: read_port(get, ports)?, https, headers })
}

fn read_port(action: &Object<'_>, ports: &[ContainerPort]) -> Result<ProbePort, PodError> {
    let Some(field) = action.get("port") else { return Err(action.refused("must have a port")) };
    match field.int_or_text()? {
        Ok(number) => numbered(&field, number),
        Err(name) => {
            let port = ports.iter().find(|port| port.name.as_deref() == Some(name));
            let port = port.ok_or_else(|| {
                field.refused("must be a number or the name of a port of the same container")
            })?;
            Ok(ProbePort { number: port.container_port, name: Some(name.to_owned()) })
        }
    }
}

fn numbered(field: &Field<'_>, number: i128) -> Result<ProbePort, PodError> {
    match u16::try_from(number) {
        Ok(number) if number > 0 => Ok(ProbePort { number, name: None }),
        _ => Err(field.refused("must be from 1 to 65535")),
    }
}
