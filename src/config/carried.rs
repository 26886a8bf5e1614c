//! A configuration on its way from the parent of several processes to one of them.
//!
//! They do not read it for themselves: a file that changes under a running server would give a process that is started again
//! other settings than the rest. It has the secrets in it, so it goes over a socket and lies nowhere.

use serde::{Deserialize, Serialize};

use super::layers::id;
use super::setting::Input;
use super::{Config, options};

/// Every option with its value.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
pub struct Carried(Vec<(String, Input)>);

impl Carried {
    /// All of this configuration.
    pub fn of(config: &Config) -> Carried {
        let fields = options::all().filter_map(|definition| Some((definition, definition.access?)));
        let values =
            fields.map(|(definition, access)| (id(definition).to_owned(), (access.carry)(config, definition.unit)));
        Carried(values.collect())
    }

    /// Reads it.
    ///
    /// # Errors
    /// It was written by another version of this program.
    pub fn into_config(self) -> Result<Config, String> {
        let mut config = Config::default();
        for (name, input) in &self.0 {
            let definition = options::all().find(|definition| id(definition) == name);
            let found = definition.and_then(|definition| Some((definition, definition.access?)));
            let (definition, access) = found.ok_or_else(|| format!("no option is called {name}"))?;
            (access.set)(&mut config, input, definition.unit).map_err(|why| format!("{name}: {why}"))?;
        }
        Ok(config)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::super::{Command, Invocation, parse};
    use super::*;

    #[test]
    fn a_configuration_arrives_as_it_was_with_its_secrets() {
        let arguments = "--port 7 --ignore-config-path --secret s3cret --broadcast-key none --path /a,/b/{x} --max-conn 100000 \
                         --redis-url redis://:p%40ss@h:6379/3 --pubsub redis --broker redis --processes auto --headers a,b --ready-path \
                         none --admin-port 0 --ping-interval 1500ms --ws-max-buffers-size 1GiB --allowed-origins *.a.example \
                         --metrics-tags env:x,app:y --public --reaping aggressive";
        let Ok(Invocation { command: Command::Serve(config), .. }) =
            parse(arguments.split_whitespace(), &BTreeMap::new())
        else {
            panic!("{:?}", parse(arguments.split_whitespace(), &BTreeMap::new()));
        };
        let bytes = rmp_serde::to_vec(&Carried::of(&config)).unwrap();
        let carried: Carried = rmp_serde::from_slice(&bytes).unwrap();
        assert!(carried.into_config().unwrap() == *config);
        let unknown = Carried(vec![("tea".into(), Input::One("hot".into()))]);
        assert!(unknown.into_config().is_err());
    }
}
