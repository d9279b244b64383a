//! From flags, environment and file to one [`Config`].

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use figment::providers::Serialized;
use figment::value::{Dict, Map, Value};
use figment::{Error, Figment, Metadata, Profile, Provider};

use super::Config;
use super::args::Given;
use super::settings::{Kind, SETTINGS, Setting, by_key};
use crate::exit::{Exit, Failure};

/// The file that is read when it exists and no other is named.
pub(crate) const DEFAULT_FILE: &str = "/etc/stackd/stackd.toml";

/// The environment as it was when the program began.
#[derive(Debug, Clone, Default)]
pub(crate) struct Environment(BTreeMap<String, String>);

impl Environment {
    /// The process's own. Variables that are not text cannot be ours.
    pub(crate) fn of_process() -> Self {
        let text = |(name, value): (std::ffi::OsString, std::ffi::OsString)| {
            Some((name.into_string().ok()?, value.into_string().ok()?))
        };
        Self(std::env::vars_os().filter_map(text).collect())
    }

    /// A variable that is set and not blank.
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str).filter(|value| !value.trim().is_empty())
    }

    /// Variables that look like ours and are not: a misspelt one would be without effect. A cluster
    /// makes some of its own for a service called stackd.
    pub(crate) fn unknown(&self) -> Vec<&str> {
        let known = |name: &str| {
            BESIDE_SETTINGS.contains(&name) || SETTINGS.iter().any(|s| s.env() == name)
        };
        let of_cluster =
            |name: &str| name.starts_with("STACKD_SERVICE_") || name.starts_with("STACKD_PORT");
        let names = self.0.keys().map(String::as_str).filter(|name| name.starts_with("STACKD_"));
        names.filter(|name| !known(name) && !of_cluster(name)).collect()
    }
}

/// Variables that are no setting.
const BESIDE_SETTINGS: [&str; 7] = [
    "STACKD_API_KEY",
    "STACKD_CACERT",
    "STACKD_CONFIG",
    "STACKD_LOG",
    "STACKD_SERVER",
    "STACKD_TARGET_DIR",
    "STACKD_TOOLS_DIR",
];

impl<const N: usize> From<[(&str, &str); N]> for Environment {
    fn from(pairs: [(&str, &str); N]) -> Self {
        Self(pairs.into_iter().map(|(n, v)| (n.to_owned(), v.to_owned())).collect())
    }
}

/// Reads all settings. `default_file` is [`DEFAULT_FILE`] outside of tests.
pub(crate) fn load(
    given: &Given,
    environment: &Environment,
    default_file: &Path,
) -> Result<Config, Failure> {
    let mut figment = Figment::from(Serialized::defaults(Config::default()));
    if let Some((path, table)) = file(given, environment, default_file)? {
        figment = figment.merge(Layer { name: format!("{}", path.display()), values: table });
    }
    let from_environment = |setting: &'static Setting| {
        let name = setting.env();
        let alias = match setting.key {
            "log.level" => Some("STACKD_LOG"),
            "engine.players.create_max" => Some("STACKS_CREATE_MAX"),
            "engine.players.create_window" => Some("STACKS_CREATE_WINDOW"),
            _ => None,
        };
        let (name, text) = match environment.get(&name) {
            Some(text) => (name, text),
            None => alias.and_then(|alias| Some((alias.to_owned(), environment.get(alias)?)))?,
        };
        Some((setting, name, vec![text.to_owned()]))
    };
    let from_flags = |(key, texts): (&&'static str, &Vec<String>)| {
        let setting = by_key(key)?;
        Some((setting, format!("--{}", setting.flag), texts.clone()))
    };
    for (setting, name, text) in of_docker(environment) {
        figment = figment
            .merge(Layer { name: name.to_owned(), values: nested(setting, Value::from(text)) });
    }
    let environment = SETTINGS.iter().filter_map(from_environment);
    let flags = given.flags.iter().filter_map(from_flags);
    for (setting, name, texts) in environment.chain(flags) {
        let value = read(setting, &name, &texts)?;
        let values = nested(setting.key, value);
        figment = figment.merge(Layer { name, values });
    }
    figment.extract().map_err(|error| refused(&error, &figment))
}

/// What the variables of Docker's own client say: before the file, after all that is ours.
fn of_docker(environment: &Environment) -> Vec<(&'static str, &'static str, String)> {
    let mut values = Vec::new();
    if let Some(host) = environment.get("DOCKER_HOST") {
        values.push(("runtime.docker.host", "DOCKER_HOST", host.to_owned()));
    }
    if environment.get("DOCKER_TLS_VERIFY").is_some() {
        const NAME: &str = "DOCKER_CERT_PATH";
        let home = || environment.get("HOME").map(|home| format!("{home}/.docker"));
        if let Some(directory) = environment.get(NAME).map(str::to_owned).or_else(home) {
            for (setting, file) in [
                ("runtime.docker.tls_ca", "ca.pem"),
                ("runtime.docker.tls_cert", "cert.pem"),
                ("runtime.docker.tls_key", "key.pem"),
            ] {
                values.push((setting, NAME, format!("{directory}/{file}")));
            }
        }
    }
    values
}

/// Settings from one place, which errors name.
struct Layer {
    name: String,
    values: Dict,
}

impl Provider for Layer {
    fn metadata(&self) -> Metadata {
        Metadata::named(self.name.clone())
    }

    fn data(&self) -> Result<Map<Profile, Dict>, Error> {
        Ok(Map::from([(Profile::Default, self.values.clone())]))
    }
}

fn nested(key: &str, value: Value) -> Dict {
    match key.split_once('.') {
        Some((section, rest)) => {
            Dict::from([(section.to_owned(), Value::from(nested(rest, value)))])
        }
        None => Dict::from([(key.to_owned(), value)]),
    }
}

fn read(setting: &Setting, name: &str, texts: &[String]) -> Result<Value, Failure> {
    let last = texts.last().map_or("", |text| text.trim());
    let several =
        || texts.iter().flat_map(|text| text.split(',')).map(str::trim).filter(|t| !t.is_empty());
    let wrong = |what: &str| {
        Failure::new(Exit::Config, format!("{name}: {last:?} is not {what}")).hint(setting.doc())
    };
    Ok(match setting.kind {
        Kind::Text => Value::from(last),
        Kind::Number => match (last.parse::<u64>(), last.parse::<f64>()) {
            (Ok(whole), _) => Value::from(whole),
            (_, Ok(number)) => Value::from(number),
            _ => return Err(wrong("a number")),
        },
        Kind::Switch | Kind::Off => {
            let yes = match last.to_ascii_lowercase().as_str() {
                "true" | "yes" | "on" | "1" => true,
                "false" | "no" | "off" | "0" => false,
                _ => return Err(wrong("true or false")),
            };
            Value::from(yes != (setting.kind == Kind::Off))
        }
        Kind::List => Value::from(several().collect::<Vec<_>>()),
        Kind::Numbers => {
            let numbers: Result<Vec<u64>, _> = several().map(str::parse).collect();
            Value::from(numbers.map_err(|_| wrong("a list of whole numbers"))?)
        }
        Kind::Map => {
            let mut map: BTreeMap<String, Vec<String>> = BTreeMap::new();
            for text in several() {
                let (key, value) = text.split_once('=').ok_or_else(|| wrong("NAME=VALUE"))?;
                map.entry(key.trim().to_owned()).or_default().push(value.trim().to_owned());
            }
            Value::serialize(map).map_err(|error| refused(&error, &Figment::new()))?
        }
        Kind::Table => {
            let mut table = Dict::new();
            for text in several() {
                let (key, value) = text.split_once('=').ok_or_else(|| wrong(setting.value))?;
                let value = value.trim();
                // Whole numbers stay numbers: not every amount may be written as a text.
                let value = value.parse::<u64>().map_or_else(|_| Value::from(value), Value::from);
                table.insert(key.trim().to_owned(), value);
            }
            Value::from(table)
        }
    })
}

fn file(
    given: &Given,
    environment: &Environment,
    default_file: &Path,
) -> Result<Option<(PathBuf, Dict)>, Failure> {
    let named = given.config.clone().or_else(|| environment.get("STACKD_CONFIG").map(Into::into));
    let path = named.clone().unwrap_or_else(|| default_file.to_owned());
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound && named.is_none() => {
            return Ok(None);
        }
        Err(error) => {
            let text = format!("the configuration file {} cannot be read: {error}", path.display());
            return Err(Failure::new(Exit::Config, text)
                .hint("name another with --config, or remove STACKD_CONFIG"));
        }
    };
    let table = text.parse::<toml::Table>().map_err(|error| {
        let text = format!("{} is not valid TOML\n{error}", path.display());
        Failure::new(Exit::Config, text.trim_end().to_owned())
    })?;
    let mut unknown = Vec::new();
    unknown_keys("", &table, &mut unknown);
    if let Some(key) = unknown.first() {
        let text = format!("{}: there is no setting \"{key}\"", path.display());
        return Err(Failure::new(Exit::Config, text).hint(match nearest(key) {
            Some(near) => format!("did you mean \"{near}\"?"),
            None => "docs/configuration.md lists all settings".to_owned(),
        }));
    }
    let values = Value::serialize(table).map_err(|error| refused(&error, &Figment::new()))?;
    Ok(values.into_dict().map(|values| (path, values)))
}

/// Keys of the file that no setting has. A table that is itself a setting may hold anything.
fn unknown_keys(prefix: &str, table: &toml::Table, unknown: &mut Vec<String>) {
    for (name, value) in table {
        let key = if prefix.is_empty() { name.clone() } else { format!("{prefix}.{name}") };
        let section = format!("{key}.");
        match value {
            _ if by_key(&key).is_some() => {}
            toml::Value::Table(inner) if SETTINGS.iter().any(|s| s.key.starts_with(&section)) => {
                unknown_keys(&key, inner, unknown);
            }
            _ => unknown.push(key),
        }
    }
}

/// The known key that looks most like this one, if any does.
fn nearest(key: &str) -> Option<&'static str> {
    let last = |key: &str| key.rsplit('.').next().unwrap_or_default().to_owned();
    let score = |known: &str| {
        let names = strsim::jaro_winkler(&last(known), &last(key));
        strsim::jaro_winkler(known, key).max(names)
    };
    SETTINGS
        .iter()
        .map(|setting| (score(setting.key), setting.key))
        .filter(|(score, _)| *score > 0.8)
        .max_by(|(a, _), (b, _)| a.total_cmp(b))
        .map(|(_, known)| known)
}

/// Says which setting was refused, where it was set, and why.
fn refused(error: &Error, read: &Figment) -> Failure {
    let key = error.path.join(".");
    let source = error.metadata.as_ref().map(|metadata| metadata.name.to_string());
    let place = match (&source, key.is_empty()) {
        (Some(source), false) if source.starts_with("--") || source.starts_with("STACKD_") => {
            source.clone()
        }
        (Some(source), false) => format!("{source}: {key}"),
        (Some(source), true) => source.clone(),
        (None, _) => key.clone(),
    };
    // Where one of several words is expected, they stand between two pairs of quotes.
    let why = error.kind.to_string().replace("`one of `", "one of `").replace("``", "`");
    let given = given_text(read, &key).filter(|text| !why.contains(text.as_str()));
    let text = match given {
        Some(given) => format!("{place}: {given:?}: {why}"),
        None => format!("{place}: {why}"),
    };
    let failure = Failure::new(Exit::Config, text);
    // An element of a list is named by its number; the setting is the list.
    let setting = by_key(&key).or_else(|| by_key(key.rsplit_once('.')?.0));
    match setting {
        Some(setting) => failure.hint(setting.doc()),
        None => failure,
    }
}

/// The text at this key; an element of a list is named by its number.
fn given_text(read: &Figment, key: &str) -> Option<String> {
    let value = read.find_value(key).ok().or_else(|| {
        let (list, number) = key.rsplit_once('.')?;
        read.find_value(list).ok()?.into_array()?.into_iter().nth(number.parse().ok()?)
    });
    Some(value?.as_str()?.to_owned())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn given<const N: usize>(flags: [(&'static str, &str); N]) -> Given {
        let flags = flags.into_iter().map(|(key, text)| (key, vec![text.to_owned()]));
        Given { config: None, flags: flags.collect() }
    }

    fn load_with(
        file: Option<&str>,
        environment: Environment,
        given: &Given,
    ) -> Result<Config, Failure> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("stackd.toml");
        if let Some(text) = file {
            std::fs::write(&path, text).unwrap();
        }
        load(given, &environment, &path)
    }

    fn text_of(result: Result<Config, Failure>) -> String {
        let Err(failure) = result else { panic!("should be refused") };
        assert_eq!(failure.exit(), Exit::Config);
        crate::exit::render(&failure.into())
    }

    #[test]
    fn variables_of_dockers_client_count() {
        let environment = Environment::from([
            ("DOCKER_HOST", "tcp://192.0.2.1:2376"),
            ("DOCKER_TLS_VERIFY", "1"),
            ("DOCKER_CERT_PATH", "/certs"),
        ]);
        let docker = load_with(None, environment.clone(), &given([])).ok().unwrap().runtime.docker;
        assert_eq!(docker.host, "tcp://192.0.2.1:2376");
        assert_eq!(docker.tls_key, Some("/certs/key.pem".into()));
        let flags = given([("runtime.docker.host", "unix:///run/docker.sock")]);
        let docker = load_with(None, environment, &flags).ok().unwrap().runtime.docker;
        assert_eq!(docker.host, "unix:///run/docker.sock");
    }

    #[test]
    fn flags_come_before_environment_before_file_before_defaults() {
        let file = "data_dir = '/file'\n[engine]\ndefault_ttl = 60\nmin_ttl = '2s'\nmax_ttl = '3h'";
        let environment = || {
            Environment::from([("STACKD_DEFAULT_TTL", "10m"), ("STACKD_MIN_TTL", "4"), ("X", "y")])
        };
        let flags = given([("engine.default_ttl", "20m"), ("api.auth", "true")]);
        let config = load_with(Some(file), environment(), &flags).ok().unwrap();
        assert_eq!(config.engine.default_ttl, Duration::from_secs(20 * 60));
        assert_eq!(config.engine.min_ttl, Duration::from_secs(4));
        assert_eq!(config.engine.max_ttl, Duration::from_secs(3 * 3600));
        assert_eq!(config.engine.start_timeout, Duration::from_secs(300));
        assert_eq!(config.data_dir, Path::new("/file"));
        assert!(!config.api.auth);
        let config = load_with(None, environment(), &given([])).ok().unwrap();
        assert_eq!(config.engine.default_ttl, Duration::from_secs(600));
        assert_eq!(config.data_dir, Path::new("/var/lib/stackd"));
    }

    #[test]
    fn a_list_is_replaced_as_a_whole() {
        let file = "[server]\nlisten = ['127.0.0.1:1', '127.0.0.1:2']";
        let environment = Environment::from([("STACKD_LISTEN", "127.0.0.1:3, [::1]:4,")]);
        let config = load_with(Some(file), environment, &given([])).ok().unwrap();
        let listen: Vec<_> = config.server.listen.iter().map(ToString::to_string).collect();
        assert_eq!(listen, ["127.0.0.1:3", "[::1]:4"]);
    }

    #[test]
    fn the_log_filter_has_a_short_name_too() {
        let environment = Environment::from([("STACKD_LOG", "debug")]);
        let config = load_with(None, environment, &given([])).ok().unwrap();
        assert_eq!(config.log.level, "debug");
        let both = Environment::from([("STACKD_LOG", "debug"), ("STACKD_LOG_LEVEL", "trace")]);
        assert_eq!(load_with(None, both, &given([])).ok().unwrap().log.level, "trace");
    }

    #[test]
    fn the_rate_of_creates_has_the_names_that_platforms_document() {
        let documented =
            || Environment::from([("STACKS_CREATE_MAX", "60"), ("STACKS_CREATE_WINDOW", "1m")]);
        let players = |environment, file| {
            load_with(file, environment, &given([])).ok().unwrap().engine.players
        };
        let file = "[engine.players]\ncreate_max = 2\ncreate_window = '3s'";
        for file in [None, Some(file)] {
            let read = players(documented(), file);
            assert_eq!((read.create_max, read.create_window), (60, Duration::from_secs(60)));
        }
        let seconds = Environment::from([("STACKS_CREATE_WINDOW", "90")]);
        assert_eq!(players(seconds, None).create_window, Duration::from_secs(90));
    }

    #[test]
    fn a_mistake_is_named_with_its_place_and_a_hint() {
        let none = Environment::default;
        let refused = text_of(load_with(Some("[engine]\ndefault_tll = 5"), none(), &given([])));
        assert!(refused.contains("there is no setting \"engine.default_tll\""), "{refused}");
        assert!(refused.contains("hint: did you mean \"engine.default_ttl\"?"), "{refused}");

        let refused = text_of(load_with(Some("[engine]\nmin_ttl = 'soon'"), none(), &given([])));
        assert!(refused.contains("stackd.toml: engine.min_ttl: \"soon\" is not a"), "{refused}");
        assert!(refused.contains("hint: The shortest life"), "{refused}");

        let refused = text_of(load_with(Some("[engine\n"), none(), &given([])));
        assert!(refused.contains("stackd.toml is not valid TOML"), "{refused}");

        let environment = Environment::from([("STACKD_KEEP_EVENTS", "many")]);
        let refused = text_of(load_with(None, environment, &given([])));
        assert!(refused.contains("STACKD_KEEP_EVENTS: \"many\" is not a number"));

        let refused = text_of(load_with(None, none(), &given([("server.listen", "8080")])));
        assert!(refused.contains("error: --listen: "), "{refused}");
        assert!(refused.contains("hint: An address and port to listen on"), "{refused}");

        let refused = text_of(load_with(None, none(), &given([("runtime.driver", "podman")])));
        assert!(refused.contains("--runtime: unknown variant"), "{refused}");
    }

    #[test]
    fn a_refusal_shows_what_was_given() {
        let listen = given([("server.listen", "localhost:19182")]);
        let refused = text_of(load_with(None, Environment::default(), &listen));
        assert!(refused.contains("error: --listen: \"localhost:19182\": invalid "), "{refused}");
        let format = given([("log.format", "xml")]);
        let refused = text_of(load_with(None, Environment::default(), &format));
        assert!(refused.contains("expected `text` or `json`\n"), "{refused}");
    }

    #[test]
    fn variables_that_mean_nothing_are_found() {
        let environment = Environment::from([
            ("STACKD_LISTEN", "127.0.0.1:1"),
            ("STACKD_LITSEN", "127.0.0.1:1"),
            ("STACKD_PORT_8080_TCP_ADDR", "10.0.0.1"),
            ("STACKD_API_KEY", "x"),
            ("PATH", "/bin"),
        ]);
        assert_eq!(environment.unknown(), ["STACKD_LITSEN"]);
    }

    #[test]
    fn a_file_that_was_named_must_be_there() {
        let missing = Given { config: Some("/nowhere/stackd.toml".into()), ..Given::default() };
        let refused = text_of(load_with(None, Environment::default(), &missing));
        assert!(refused.contains("/nowhere/stackd.toml cannot be read"), "{refused}");
    }

    #[test]
    fn every_setting_is_listed_and_every_listed_one_exists() {
        fn leaves(prefix: &str, value: &serde_json::Value, found: &mut Vec<String>) {
            match value {
                serde_json::Value::Object(map) if by_key(prefix).is_none() => {
                    for (name, value) in map {
                        let dot = if prefix.is_empty() { "" } else { "." };
                        leaves(&format!("{prefix}{dot}{name}"), value, found);
                    }
                }
                _ => found.push(prefix.to_owned()),
            }
        }
        let mut found = Vec::new();
        leaves("", &serde_json::to_value(Config::default()).unwrap(), &mut found);
        found.sort();
        let mut listed: Vec<_> = SETTINGS.iter().map(|s| s.key.to_owned()).collect();
        listed.sort();
        assert_eq!(found, listed);
    }
}
