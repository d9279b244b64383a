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

/// What is hard to use on a page as it is shown: text without enough contrast (WCAG 2.2, 1.4.3),
/// buttons that a finger misses, and what does not fit.
const FAULTS: &str = r"(() => {
    const parts = (color) => color.match(/[\d.]+/g).map(Number);
    const linear = (value) => value <= 10.31475 ? value / 3294.6 : ((value / 255 + .055) / 1.055) ** 2.4;
    const light = (color) => {
        const [red, green, blue] = parts(color).map(linear);
        return .2126 * red + .7152 * green + .0722 * blue;
    };
    const ground = (each) => {
        const color = getComputedStyle(each).backgroundColor;
        return parts(color)[3] === 0 ? ground(each.parentElement) : color;
    };
    const faults = [];
    if (document.documentElement.scrollWidth > innerWidth) faults.push('it is wider than the window');
    for (const each of document.querySelectorAll('body *')) {
        if (!each.checkVisibility() || each.offsetWidth <= 1) continue;
        const name = each.tagName + ' ' + each.textContent;
        if (each.tagName === 'BUTTON' && each.offsetHeight < 44) faults.push(name + ': too low');
        if (![...each.childNodes].some((node) => node.nodeType === 3 && node.data.trim())) continue;
        const [dark, bright] = [getComputedStyle(each).color, ground(each)].map(light).sort((a, b) => a - b);
        const ratio = (bright + .05) / (dark + .05);
        if (ratio < 4.5) faults.push(name + ': contrast ' + ratio.toFixed(2));
    }
    return faults;
})()";

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

    async fn get(&self, path: &str) -> Value {
        let url = format!("{}/{path}", self.session);
        let answer = within("the browser answers", self.http.get(url).send()).await;
        let mut answer: Value = answer.expect("an answer").json().await.expect("JSON");
        assert!(answer["value"]["error"].is_null(), "{path}: {answer:#}");
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
        for key in keys {
            self.chord(&[key]).await;
        }
    }

    /// Presses keys together.
    pub(crate) async fn chord(&self, keys: &[&str]) {
        let down = keys.iter().map(|key| json!({"type": "keyDown", "value": key}));
        let up = keys.iter().rev().map(|key| json!({"type": "keyUp", "value": key}));
        let steps: Vec<_> = down.chain(up).collect();
        let actions = json!({"actions": [{"type": "key", "id": "keyboard", "actions": steps}]});
        self.post("actions", actions).await;
    }

    /// What a screen reader is told of an element: its role and its name.
    pub(crate) async fn told(&self, css: &str) -> (String, String) {
        let element = self.element(css).await;
        let role = self.get(&format!("element/{element}/computedrole")).await;
        let name = self.get(&format!("element/{element}/computedlabel")).await;
        let text = |value: Value| value.as_str().expect("a text").to_owned();
        (text(role), text(name))
    }

    /// Goes into the page's only frame.
    pub(crate) async fn enter_frame(&self) {
        self.post("frame", json!({"id": 0})).await;
    }

    /// Goes back to the page that has the frame.
    pub(crate) async fn leave_frame(&self) {
        self.post("frame", json!({"id": null})).await;
    }

    /// Lets a page use the clipboard, as a person does who is asked.
    pub(crate) async fn allow_clipboard(&self, origin: &str) {
        let permissions = ["clipboardReadWrite", "clipboardSanitizedWrite"];
        let params = json!({"origin": origin, "permissions": permissions});
        self.devtools("Browser.grantPermissions", params).await;
    }

    /// Looks at the page in light, in dark and on phones, keeps the pictures, and fails where it is
    /// hard to use.
    pub(crate) async fn look(&self, name: &str) {
        for (looks, scheme, width, height) in [
            ("phone-light", "light", 360, 740),
            ("phone-dark", "dark", 390, 844),
            ("dark", "dark", 1000, 800),
            ("light", "light", 1000, 800),
        ] {
            self.prefer(scheme).await;
            self.resize(width, height).await;
            self.picture(&format!("{name}-{looks}")).await;
            let faults = self.eval(FAULTS).await;
            assert_eq!(faults, json!([]), "{name}, {looks}");
        }
    }

    async fn resize(&self, width: u32, height: u32) {
        let params = json!({"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600});
        self.devtools("Emulation.setDeviceMetricsOverride", params).await;
    }

    /// Prefers `light` or `dark`.
    async fn prefer(&self, scheme: &str) {
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
        let picture = self.get("screenshot").await;
        let png = decode(picture.as_str().expect("a picture"));
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
