//! The other end of the admin socket.

use anyhow::Context;
use reqwest::{Method, RequestBuilder, Response};
use serde::de::DeserializeOwned;

use super::admin::{Info, Refusal};
use super::data_dir::DataDir;
use crate::exit::{Exit, Failure};

/// A connection to the server of a data directory.
pub(crate) struct AdminClient {
    http: reqwest::Client,
}

impl AdminClient {
    /// `None` when no server answers there.
    pub(crate) async fn connect(data: &DataDir) -> Option<Self> {
        crate::client::use_ring();
        // No TLS, so no authorities either: in an image from scratch the system has none.
        let http = reqwest::Client::builder().tls_certs_only([]);
        let http = http.unix_socket(data.admin_socket()).build().ok()?;
        let client = Self { http };
        client.info().await.ok()?;
        Some(client)
    }

    /// Who answers.
    pub(crate) async fn info(&self) -> anyhow::Result<Info> {
        self.json(self.request(Method::GET, "info")).await
    }

    /// A call of the socket.
    pub(crate) fn request(&self, method: Method, path: &str) -> RequestBuilder {
        // The host is only there because HTTP wants one.
        self.http.request(method, format!("http://stackd/{path}"))
    }

    /// Sends a call, and turns a refusal into the failure that it stands for.
    pub(crate) async fn send(&self, request: RequestBuilder) -> anyhow::Result<Response> {
        let response = request.send().await.context("the server's admin socket does not answer")?;
        if response.status().is_success() {
            return Ok(response);
        }
        let status = response.status();
        let refusal: Refusal = response
            .json()
            .await
            .with_context(|| format!("the server's admin socket answered {status}"))?;
        Err(refusal.into_failure().into())
    }

    /// Sends a call and reads the answer.
    pub(crate) async fn json<T: DeserializeOwned>(
        &self,
        request: RequestBuilder,
    ) -> anyhow::Result<T> {
        let response = self.send(request).await?;
        response.json().await.context("the server's admin socket answered something else")
    }
}

impl Refusal {
    /// The failure that the command ends with.
    pub(crate) fn into_failure(self) -> Failure {
        let exit = Exit::ALL.iter().map(|(exit, _)| *exit).find(|exit| exit.code() == self.exit);
        let failure = Failure::new(exit.unwrap_or(Exit::Failed), self.error);
        self.hints.into_iter().fold(failure, Failure::hint)
    }
}
