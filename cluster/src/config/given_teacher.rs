//! Teachers that are there already: directories in place of trainings, `distill.teachers` of a recipe.

use std::borrow::Cow;
use std::fmt;
use std::path::PathBuf;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::value::MapAccessDeserializer;
use serde::de::{Error, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

/// A model directory that teaches a task: one that bam wrote, or Hugging Face's `BertForSequenceClassification`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct GivenTeacher {
    /// The directory, with config.json, weights, and vocab.txt or tokenizer.json. A model of more tasks than the recipe has
    /// may teach those that it has.
    pub path: PathBuf,
    /// Names of its outputs in their order, where its config.json has none or others than the task.
    pub labels: Option<Vec<String>>,
}

impl GivenTeacher {
    /// The name of its weights among a stage's inputs.
    pub fn input_name(&self) -> String {
        format!("teacher {}", self.path.display())
    }
}

/// The teachers of one task; several are an ensemble. In a recipe: a path, `{ path, labels }`, or a list of these.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct GivenTeachers(pub Vec<GivenTeacher>);

/// A model directory that teaches a task.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "GivenTeacher")]
struct Declared {
    /// The directory, with config.json, weights, and vocab.txt or tokenizer.json. A model of more tasks than the recipe has
    /// may teach those that it has.
    path: PathBuf,
    /// Names of its outputs in their order, where its config.json has none or others than the task.
    #[serde(default)]
    labels: Option<Vec<String>>,
}

impl From<Declared> for GivenTeacher {
    fn from(Declared { path, labels }: Declared) -> Self {
        GivenTeacher { path, labels }
    }
}

// The three ways of writing them that the visitors below take.
impl JsonSchema for GivenTeachers {
    fn schema_name() -> Cow<'static, str> {
        "GivenTeachers".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let declared = generator.subschema_for::<Declared>();
        json_schema!({
            "description": "The teachers of one task: a model directory, a mapping with path and labels, or a list of these.",
            "anyOf": [
                { "type": "string" },
                declared,
                { "type": "array", "items": { "anyOf": [{ "type": "string" }, declared] } },
            ],
        })
    }
}

struct TeacherVisitor;

impl<'de> Visitor<'de> for TeacherVisitor {
    type Value = GivenTeacher;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("a model directory, or a mapping with path and labels")
    }

    fn visit_str<E: Error>(self, path: &str) -> Result<GivenTeacher, E> {
        Ok(GivenTeacher { path: path.into(), labels: None })
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<GivenTeacher, A::Error> {
        Declared::deserialize(MapAccessDeserializer::new(map)).map(GivenTeacher::from)
    }
}

// By hand, as for tasks: serde's untagged enums lose the message and the place of what is wrong inside them.
impl<'de> Deserialize<'de> for GivenTeacher {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(TeacherVisitor)
    }
}

impl<'de> Deserialize<'de> for GivenTeachers {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ListVisitor;
        impl<'de> Visitor<'de> for ListVisitor {
            type Value = GivenTeachers;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a model directory, a mapping with path and labels, or a list of these")
            }

            fn visit_str<E: Error>(self, path: &str) -> Result<GivenTeachers, E> {
                TeacherVisitor.visit_str(path).map(|teacher| GivenTeachers(vec![teacher]))
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<GivenTeachers, A::Error> {
                TeacherVisitor.visit_map(map).map(|teacher| GivenTeachers(vec![teacher]))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<GivenTeachers, A::Error> {
                let mut teachers = vec![];
                while let Some(teacher) = list.next_element()? {
                    teachers.push(teacher);
                }
                Ok(GivenTeachers(teachers))
            }
        }
        deserializer.deserialize_any(ListVisitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_or_several_with_labels_or_without() {
        let read = |text: &str| serde_norway::from_str::<GivenTeachers>(text);
        let plain = |path: &str| GivenTeacher { path: path.into(), labels: None };
        assert_eq!(read("/a").unwrap().0, [plain("/a")]);
        assert_eq!(read("[/a, { path: /b }]").unwrap().0, [plain("/a"), plain("/b")]);
        let named = read("{ path: /a, labels: [no, yes] }").unwrap();
        assert_eq!(named.0[0].labels.as_deref(), Some(&["no".to_owned(), "yes".to_owned()][..]));
        let written = serde_norway::to_string(&named).unwrap();
        assert_eq!(read(&written).unwrap(), named);
        assert!(read("{ paht: /a }").unwrap_err().to_string().contains("unknown field `paht`"));
        assert!(read("7").unwrap_err().to_string().contains("a model directory"));
    }
}
