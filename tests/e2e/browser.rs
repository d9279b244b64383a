//! A real browser: Chromium, driven through chromedriver by WebDriver, which is JSON over HTTP.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use reqwest::Client;
use serde_json::{Value, json};
use stackd_testkit::within;
use tempfile::TempDir;

/// The key under which WebDriver names an element.
const ELEMENT: &str = "element-6066-11e4-a52e-4f735466cecf";

/// One window.
pub(crate) struct Browser {
    driver: Child,
    http: Client,
    session: String,
    _profile: TempDir,
}

impl Browser {
    /// A window of this size.
    pub(crate) async fn open(width: u32, height: u32) -> Self {
        let profile = tempfile::tempdir().expect("a directory");
        let port = stackd_testkit::ports::free();
        let driver = Command::new("chromedriver")
            .arg(format!("--port={port}"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("chromedriver is installed (ci/install-test-deps.sh)");
        let http = Client::new();
        let url = format!("http://127.0.0.1:{port}/session");
        let data = format!("--user-data-dir={}", profile.path().display());
        let size = format!("--window-size={width},{height}");
        let flags = [
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--disable-dev-shm-usage",
            &data,
            &size,
        ];
        let wanted = json!({"capabilities": {"alwaysMatch": {
            "goog:chromeOptions": {"args": flags},
            "goog:loggingPrefs": {"browser": "ALL"},
        }}});
        let mut browser = Self { driver, http, session: String::new(), _profile: profile };
        let made = within("the browser starts", async {
            let mut pause = tokio::time::interval(Duration::from_millis(50));
            loop {
                pause.tick().await;
                if let Ok(answer) = browser.http.post(&url).json(&wanted).send().await {
                    break answer.json::<Value>().await.expect("JSON");
                }
            }
        })
        .await;
        let id = made["value"]["sessionId"].as_str().unwrap_or_else(|| panic!("{made:#}"));
        browser.session = format!("{url}/{id}");
        browser
    }

    async fn post(&self, path: &str, body: Value) -> Value {
        let url = format!("{}/{path}", self.session);
        let answer = within("the browser answers", self.http.post(url).json(&body).send()).await;
        let mut answer: Value = answer.expect("an answer").json().await.expect("JSON");
        assert!(answer["value"]["error"].is_null(), "{path} {body}: {answer:#}");
        answer["value"].take()
    }

    pub(crate) async fn go(&self, url: &str) {
        self.post("url", json!({ "url": url })).await;
    }

    /// What a script of one expression gives.
    pub(crate) async fn eval(&self, expression: &str) -> Value {
        let script = format!("return {expression}");
        self.post("execute/sync", json!({"script": script, "args": []})).await
    }

    /// Waits until an expression is true.
    pub(crate) async fn until(&self, expression: &str) {
        let mut last = Value::Null;
        let reached = tokio::time::timeout(Duration::from_secs(60), async {
            let mut pause = tokio::time::interval(Duration::from_millis(50));
            while last != true {
                pause.tick().await;
                last = self.eval(expression).await;
            }
        });
        if reached.await.is_err() {
            let page = self.eval("document.body.innerText").await;
            panic!("it did not come to {expression}: {last}; the page says {page}");
        }
    }

    async fn element(&self, css: &str) -> String {
        let found = self.post("element", json!({"using": "css selector", "value": css})).await;
        found[ELEMENT].as_str().expect("an element").to_owned()
    }

    pub(crate) async fn click(&self, css: &str) {
        let element = self.element(css).await;
        self.post(&format!("element/{element}/click"), json!({})).await;
    }

    /// Presses keys, one after another.
    pub(crate) async fn press(&self, keys: &[&str]) {
        let steps: Vec<_> = keys
            .iter()
            .flat_map(|key| {
                [json!({"type": "keyDown", "value": key}), json!({"type": "keyUp", "value": key})]
            })
            .collect();
        let actions = json!({"actions": [{"type": "key", "id": "keyboard", "actions": steps}]});
        self.post("actions", actions).await;
    }

    /// Goes into the page's only frame.
    pub(crate) async fn enter_frame(&self) {
        self.post("frame", json!({"id": 0})).await;
    }

    pub(crate) async fn resize(&self, width: u32, height: u32) {
        let params = json!({"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600});
        self.devtools("Emulation.setDeviceMetricsOverride", params).await;
    }

    /// Prefers `light` or `dark`.
    pub(crate) async fn prefer(&self, scheme: &str) {
        let features = json!({"features": [{"name": "prefers-color-scheme", "value": scheme}]});
        self.devtools("Emulation.setEmulatedMedia", features).await;
    }

    async fn devtools(&self, command: &str, params: Value) {
        self.post("goog/cdp/execute", json!({"cmd": command, "params": params})).await;
    }

    /// What the browser has complained of.
    pub(crate) async fn complaints(&self) -> Vec<String> {
        let log = self.post("se/log", json!({"type": "browser"})).await;
        let entries = log.as_array().cloned().unwrap_or_default();
        entries
            .iter()
            .map(|entry| entry["message"].as_str().unwrap_or_default().to_owned())
            .collect()
    }

    /// Keeps a picture of the page among the build's artefacts.
    pub(crate) async fn picture(&self, name: &str) {
        let url = format!("{}/screenshot", self.session);
        let answer = self.http.get(url).send().await.expect("an answer");
        let answer: Value = answer.json().await.expect("JSON");
        let text = answer["value"].as_str().expect("a picture");
        let png = decode(text);
        let mut path = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
        path.push("screenshots");
        std::fs::create_dir_all(&path).expect("a directory");
        path.push(format!("{name}.png"));
        std::fs::write(path, png).expect("a file");
    }
}

/// Base64, as WebDriver sends pictures.
fn decode(text: &str) -> Vec<u8> {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.decode(text).expect("base64")
}

impl Drop for Browser {
    fn drop(&mut self) {
        // Chromium ends with its driver's session; the driver does not wait for anything then.
        let session = self.session.clone();
        let _ = Command::new("curl").args(["-s", "-X", "DELETE", "-m", "10", &session]).output();
        let _ = self.driver.kill();
        let _ = self.driver.wait();
    }
}
