//! The wire: messages, services and the conversion to and from the model.
