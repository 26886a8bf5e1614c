//! What of a configuration that was read again a running server can take over. Pure.

use super::check;
use super::definition::{Definition, Kind};
use super::error::{ConfigError, Problem};
use super::{Config, Secrets, options};

/// The configuration from now on, and what became of each difference.
#[derive(Debug, PartialEq)]
pub struct Reloaded {
    /// What was, with everything that can be taken over.
    pub config: Config,
    /// Options that were taken over.
    pub changed: Vec<String>,
    /// Options that keep their values until the server starts again.
    pub needs_restart: Vec<String>,
}

impl Reloaded {
    /// Takes over what can be of `new`, which is good by itself, into `old`.
    ///
    /// A key can be changed while running, but not turned on or off: that moves broadcasts to another port, makes the API
    /// come or go, or gives channels to the app. Then no key is taken over, for they belong together.
    ///
    /// # Errors
    /// What is taken over cannot be together with what stays.
    pub fn from(old: &Config, new: &Config) -> Result<Reloaded, ConfigError> {
        let merge = |takes: &dyn Fn(&Definition) -> bool| {
            let mut reloaded = Reloaded { config: old.clone(), changed: Vec::new(), needs_restart: Vec::new() };
            for definition in options::all() {
                let Some(access) = definition.access.filter(|access| !(access.same)(old, new)) else { continue };
                if takes(definition) {
                    (access.copy)(new, &mut reloaded.config);
                    reloaded.changed.push(definition.label());
                } else {
                    reloaded.needs_restart.push(definition.label());
                }
            }
            reloaded
        };
        let mut reloaded = merge(&|definition| definition.live);
        if which(&Secrets::resolve(old)) != which(&Secrets::resolve(&reloaded.config)) {
            reloaded = merge(&|definition| definition.live && definition.kind != Kind::Secret);
        }
        let problems: Vec<Problem> = check::check(&reloaded.config);
        if problems.is_empty() { Ok(reloaded) } else { Err(ConfigError { problems }) }
    }
}

/// Which keys there are.
fn which(secrets: &Secrets) -> [bool; 9] {
    let Secrets { jwt, streams, turbo, cable_ready, broadcast, http_rpc, api, admin, api_on, .. } = secrets;
    let [jwt, streams, turbo, cable_ready, broadcast, http_rpc, api, admin] =
        [jwt, streams, turbo, cable_ready, broadcast, http_rpc, api, admin].map(Option::is_some);
    [jwt, streams, turbo, cable_ready, broadcast, http_rpc, api, admin, *api_on]
}

#[cfg(test)]
mod tests {
    use super::super::Secret;
    use super::*;

    fn reloaded(change: impl FnOnce(&mut Config)) -> (Config, Reloaded) {
        let mut old = Config::default();
        old.app.secret = Secret::Key("one".into());
        let mut new = old.clone();
        change(&mut new);
        let reloaded = Reloaded::from(&old, &new).unwrap();
        (new, reloaded)
    }

    #[test]
    fn what_can_be_is_taken_over_and_the_rest_is_named() {
        let (new, reloaded) = reloaded(|config| {
            config.server.allowed_origins = vec!["app.example".into()];
            config.server.max_conn = 7;
            config.app.secret = Secret::Key("two".into());
            config.server.port = 7;
            config.rpc.host = "elsewhere:1".into();
        });
        assert_eq!(reloaded.changed, ["--allowed-origins", "--max-conn", "--secret"]);
        assert_eq!(reloaded.needs_restart, ["--port", "--rpc-host"]);
        let expected = Config { rpc: Config::default().rpc, ..new };
        let port = Config::default().server.port;
        assert_eq!(
            reloaded.config,
            Config { server: super::super::Server { port, ..expected.server.clone() }, ..expected }
        );
    }

    #[test]
    fn nothing_changes_when_nothing_is_different() {
        let (new, reloaded) = reloaded(|_| ());
        assert_eq!(reloaded, Reloaded { config: new, changed: Vec::new(), needs_restart: Vec::new() });
    }

    #[test]
    fn a_key_is_neither_turned_on_nor_off() {
        for change in [
            (|config| config.broadcast.key = Secret::Off) as fn(&mut Config),
            |config| config.admin.key = Secret::Key("new".into()),
            |config| config.app.secret = Secret::Unset,
        ] {
            let (_, reloaded) = reloaded(|config| {
                change(config);
                config.jwt.secret = Secret::Key("own".into());
                config.server.max_conn = 7;
            });
            assert_eq!(reloaded.changed, ["--max-conn"]);
            assert!(reloaded.needs_restart.contains(&"--jwt-secret".to_owned()), "they belong together");
        }
    }
}
