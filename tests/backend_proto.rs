//! Keeps `proto/anycable.proto` and the Rust types in `backend/grpc/messages.rs` in step.
//!
//! protox compiles the file. For every message, a dynamic instance with a distinct value in each field is encoded by
//! the schema and decoded by the Rust type; what the Rust type encodes again must read back, by the schema, as the
//! same instance. A field that is missing, has another number or another type does not survive that.

use cableway::backend::grpc::messages;
use prost::Message;
use prost_reflect::{Cardinality, DescriptorPool, DynamicMessage, Kind, MapKey, MessageDescriptor, Value};

fn schema() -> DescriptorPool {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/proto");
    let files = protox::compile(["anycable.proto"], [folder]).expect("the file compiles");
    DescriptorPool::from_file_descriptor_set(files).expect("the file is consistent")
}

fn scalar(kind: &Kind, number: u32) -> Value {
    match kind {
        Kind::String => Value::String(format!("text {number}")),
        Kind::Bool => Value::Bool(true),
        Kind::Uint32 => Value::U32(number),
        Kind::Enum(_) => Value::EnumNumber(2),
        Kind::Message(message) => Value::Message(filled(message)),
        other => panic!("a kind that this test does not know: {other:?}"),
    }
}

fn filled(descriptor: &MessageDescriptor) -> DynamicMessage {
    let mut message = DynamicMessage::new(descriptor.clone());
    for field in descriptor.fields() {
        let number = field.number();
        let value = if field.is_map() {
            Value::Map([(MapKey::String(format!("key {number}")), Value::String("value".into()))].into())
        } else if field.cardinality() == Cardinality::Repeated {
            Value::List(vec![scalar(&field.kind(), number), scalar(&field.kind(), number + 100)])
        } else {
            scalar(&field.kind(), number)
        };
        message.set_field(&field, value);
    }
    message
}

fn survives<M: Message + Default>(schema: &DescriptorPool, name: &str) {
    let descriptor = schema.get_message_by_name(name).expect("a message of the file");
    let original = filled(&descriptor);
    let read = M::decode(original.encode_to_vec().as_slice()).expect("the Rust type reads it");
    let back = DynamicMessage::decode(descriptor, read.encode_to_vec().as_slice()).expect("the schema reads it");
    assert_eq!(back, original, "{name}");
}

#[test]
fn every_message_of_the_file_is_the_rust_type_of_its_name() {
    let schema = schema();
    survives::<messages::Env>(&schema, "anycable.Env");
    survives::<messages::EnvResponse>(&schema, "anycable.EnvResponse");
    survives::<messages::PresenceResponse>(&schema, "anycable.PresenceResponse");
    survives::<messages::ConnectionRequest>(&schema, "anycable.ConnectionRequest");
    survives::<messages::ConnectionResponse>(&schema, "anycable.ConnectionResponse");
    survives::<messages::CommandMessage>(&schema, "anycable.CommandMessage");
    survives::<messages::CommandResponse>(&schema, "anycable.CommandResponse");
    survives::<messages::DisconnectRequest>(&schema, "anycable.DisconnectRequest");
    survives::<messages::DisconnectResponse>(&schema, "anycable.DisconnectResponse");
    let compared = 9;
    let all = schema.all_messages().filter(|message| !message.is_map_entry()).count();
    assert_eq!(all, compared, "a message of the file has no Rust type in this test");
}

#[test]
fn statuses_and_methods_are_those_of_the_contract() {
    let schema = schema();
    let status = schema.get_enum_by_name("anycable.Status").unwrap();
    let values: Vec<_> = status.values().map(|value| (value.name().to_owned(), value.number())).collect();
    let expected = [
        ("ERROR", messages::Status::Error),
        ("SUCCESS", messages::Status::Success),
        ("FAILURE", messages::Status::Failure),
    ];
    assert_eq!(values, expected.map(|(name, status)| (name.to_owned(), status as i32)));
    let service = schema.get_service_by_name("anycable.RPC").unwrap();
    let methods: Vec<_> = service.methods().map(|method| method.name().to_owned()).collect();
    assert_eq!(methods, ["Connect", "Command", "Disconnect"]);
}
