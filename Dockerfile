# Builds Cableway and puts it alone into a small image, as a user without rights:
#   docker build -t cableway .
#   docker run -p 8080:8080 --ulimit nofile=1048576:1048576 cableway serve --rpc-host app:50051
#
# Every client is one open file. A container gets the limit of its runtime, often 1024 soft and as much as 1,048,576 hard: the server
# raises the soft limit itself, and the second line of its log says how many clients fit and which limit binds.
FROM rust:1-slim-bookworm AS build
WORKDIR /src
COPY . .
RUN cargo build --release --locked --package cableway --bin cableway

# The same Debian as above, so that the C library is one that the binary knows.
FROM debian:bookworm-slim
# For an app that is called through https.
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
COPY --from=build /src/target/release/cableway /usr/bin/cableway
# A number, because Kubernetes wants to see that it is not root. It needs no name, no home and no file of its own.
USER 65532:65532
# On every address of the container: its own localhost is nobody else's. Broadcasts and metrics share the port once there is a secret.
ENV CABLEWAY_HOST=0.0.0.0
EXPOSE 8080
# Whether it serves. Not whether the app can be called: a restart of this container would not help the app.
HEALTHCHECK --interval=10s --timeout=5s --start-period=10s CMD ["/usr/bin/cableway", "healthcheck"]
# Begins the drain: clients are sent away within --shutdown-timeout, 30 s. Docker waits only 10 s unless told so:
# `docker stop --time 40`, or stop_grace_period in a compose file.
STOPSIGNAL SIGTERM
ENTRYPOINT ["/usr/bin/cableway"]
CMD ["serve"]
