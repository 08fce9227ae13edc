//! A tree as YAML, keys sorted, as `docker stack config` prints it.

use serde::ser::{Serialize, SerializeMap, SerializeSeq, Serializer};

use crate::node::{Node, Value};

/// The text of a tree. With `dollars` every sign that would begin a variable is doubled again.
pub(crate) fn yaml(tree: &Node, dollars: bool) -> String {
    // A tree of texts and numbers always has a form in YAML.
    serde_saphyr::to_string(&Printed(tree, dollars)).unwrap_or_default()
}

struct Printed<'a>(&'a Node, bool);

impl Serialize for Printed<'_> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        match &self.0.value {
            Value::Null => to.serialize_unit(),
            Value::Bool(b) => to.serialize_bool(*b),
            Value::Number(n) => match (n.parse::<i64>(), n.parse::<f64>()) {
                (Ok(n), _) => to.serialize_i64(n),
                (_, Ok(n)) => to.serialize_f64(n),
                _ => to.serialize_str(n),
            },
            Value::Text(t) if self.1 => to.serialize_str(&t.replace('$', "$$")),
            Value::Text(t) => to.serialize_str(t),
            Value::List(items) => {
                let mut seq = to.serialize_seq(Some(items.len()))?;
                for item in items {
                    seq.serialize_element(&Printed(item, self.1))?;
                }
                seq.end()
            }
            Value::Map(entries) => {
                let mut sorted: Vec<_> = entries.iter().collect();
                sorted.sort_by(|a, b| a.key.cmp(&b.key));
                let mut map = to.serialize_map(Some(sorted.len()))?;
                for e in sorted {
                    map.serialize_entry(&e.key, &Printed(&e.node, self.1))?;
                }
                map.end()
            }
        }
    }
}
