# Engram's image, on Debian 13: built and unit-tested in one stage, run in another, as a user without rights and on a root
# that may be read-only. Data is in two places: the memory in /var/lib/engram, copies of it in /backup.
#   docker build -t engram .      with --build-arg BASE=... for another Debian 13
#   docker build -t engram-gpu --build-arg CUDA=fetch .      with the plug-in for GPUs; run it with --gpus all
# The model is part of the image: the one in build/models (`make model`); if there is none, it is fetched here. To run
# another model, mount its folder and set ENGRAM_MODEL to it.
ARG BASE=debian:trixie-slim

FROM ${BASE} AS build
LABEL engram.stage=build
COPY deps/packages-debian-13.txt /tmp/
RUN apt-get update -q && sed 's/#.*//' /tmp/packages-debian-13.txt | \
    DEBIAN_FRONTEND=noninteractive xargs apt-get install -q -y --no-install-recommends && \
    rm -rf /var/lib/apt/lists/*
WORKDIR /engram
COPY . .
RUN tools/model.sh
RUN make -s -j"$(nproc)" all unit && tests/run.sh unit
# from here on the two images differ: with both, what is above is built once
ARG CUDA=
RUN if [ -n "$CUDA" ]; then make -s cuda-build CUDA="$CUDA"; fi && make -s install DESTDIR=/install && rm -rf build/cuda

FROM ${BASE}
COPY deps/packages-debian-13-run.txt /tmp/
RUN apt-get update -q && sed 's/#.*//' /tmp/packages-debian-13-run.txt | \
    DEBIAN_FRONTEND=noninteractive xargs apt-get install -q -y --no-install-recommends && \
    rm -rf /var/lib/apt/lists/* /tmp/packages-debian-13-run.txt && \
    useradd --system --uid 10001 --no-create-home --shell /usr/sbin/nologin engram && \
    install -d -m 700 -o engram -g engram /var/lib/engram /backup
COPY --from=build /install/ /
COPY examples/debtags /usr/local/share/engram/examples/debtags
COPY examples/debrel /usr/local/share/engram/examples/debrel
COPY deploy/ready /usr/local/bin/engram-ready
ENV ENGRAM_MEMORY=/var/lib/engram \
    ENGRAM_LISTEN=0.0.0.0
USER engram
WORKDIR /usr/local/share/engram
VOLUME /var/lib/engram
EXPOSE 8080
HEALTHCHECK --interval=5s --timeout=5s --start-period=10m --retries=3 CMD ["engram-ready"]
ENTRYPOINT ["engram"]
CMD ["run"]
