//! Messages in their JSON mapping, with defaults printed, and the same as YAML.

use std::sync::OnceLock;

use anyhow::{Context, Result};
use prost::{Message, Name};
use prost_reflect::{DescriptorPool, DynamicMessage, SerializeOptions};

use super::{Format, screen};

fn pool() -> Result<&'static DescriptorPool> {
    static POOL: OnceLock<Result<DescriptorPool, String>> = OnceLock::new();
    let pool = POOL.get_or_init(|| DescriptorPool::decode(stoker_proto::DESCRIPTOR).map_err(|e| e.to_string()));
    pool.as_ref().map_err(|error| anyhow::anyhow!("the descriptor of stoker.v1 cannot be read: {error}"))
}

/// A message as JSON.
pub(crate) fn value<M: Message + Name>(message: &M) -> Result<serde_json::Value> {
    let name = M::full_name();
    let kind = pool()?.get_message_by_name(&name).with_context(|| format!("{name} is not in the descriptor"))?;
    let dynamic = DynamicMessage::decode(kind, message.encode_to_vec().as_slice())?;
    let options = SerializeOptions::new().skip_default_fields(false);
    Ok(dynamic.serialize_with_options(serde_json::value::Serializer, &options)?)
}

/// Writes an answer as asked: `table` is called only where a table is wanted.
pub(crate) fn answer<M: Message + Name>(format: Format, message: &M, table: impl FnOnce(&M) -> String) -> Result<()> {
    let text = match format {
        Format::Table | Format::Env => table(message),
        Format::Json => format!("{:#}\n", value(message)?),
        Format::Yaml => serde_saphyr::to_string(&value(message)?)?,
    };
    screen::data(&text);
    Ok(())
}
