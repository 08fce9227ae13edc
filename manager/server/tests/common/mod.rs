//! A manager that a test calls without its gate.

use std::path::Path;

use manager_server::Manager;
use proto::authz::Caller;
use tokio::task::JoinHandle;
use tonic::transport::Channel;

/// Serves a manager on a socket, and connects to it. As the gate would have it: one who calls there is this node.
pub(crate) async fn serve(manager: &Manager, socket: &Path) -> (Channel, JoinHandle<()>) {
    let listener = tokio::net::UnixListener::bind(socket).unwrap();
    let (control, dispatcher) = manager.services();
    let node = manager.clone();
    let server = tokio::spawn(async move {
        let incoming = tokio_stream::wrappers::UnixListenerStream::new(listener);
        let own = tonic::service::InterceptorLayer::new(move |mut request: tonic::Request<()>| {
            request.extensions_mut().insert(Caller::Node(node.node_id()));
            Ok(request)
        });
        let router = proto::listener::server()
            .layer(own)
            .add_service(control)
            .add_service(dispatcher);
        router.serve_with_incoming(incoming).await.unwrap();
    });
    (proto::channel::connect(socket).await.unwrap(), server)
}
