# The full ROS 2 Jazzy image: RViz, rosbag2, launch, and the same nodes.
#   docker build -t kestrel .
#   docker run --rm -it --network host --ipc host --user "$(id -u):$(id -g)" -e HOME=/tmp kestrel \
#     ros2 launch kestrel_bringup perception.launch.py
# Drivers on the host send through its shared memory, which the container must share, as the same user.
FROM ros:jazzy-ros-base

RUN apt-get update && apt-get install -y --no-install-recommends \
      build-essential libgl1 libgomp1 libusb-1.0-0 python3-dev python3-pip python3-venv \
      ros-jazzy-compressed-image-transport ros-jazzy-diagnostic-msgs ros-jazzy-launch-ros ros-jazzy-rosbag2-storage-mcap \
      ros-jazzy-rviz2 ros-jazzy-tf2-msgs ros-jazzy-vision-msgs \
      ros-jazzy-visualization-msgs \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /opt/kestrel
COPY . .

# The environment sees the system's ROS 2; torch comes in the build that TORCH names, and wants a setuptools that
# is newer than the system's: from 80 on it cannot install by links, as colcon does below.
ARG TORCH="torch>=2.13"
RUN python3 -m venv --system-site-packages .venv \
    && .venv/bin/pip install --no-cache-dir ${TORCH} \
    && .venv/bin/pip install --no-cache-dir -e ".[sim,show,train]" psutil "setuptools<80" \
    && (.venv/bin/pip install --no-cache-dir ./kernels || echo "kernels not built: reference operators are used")
RUN . /opt/ros/jazzy/setup.sh && . .venv/bin/activate \
    && cd ros_ws && python -m colcon build --symlink-install

ENV RMW_IMPLEMENTATION=rmw_fastrtps_cpp
RUN printf '#!/bin/bash\nset -e\n. /opt/ros/jazzy/setup.bash\n. /opt/kestrel/.venv/bin/activate\n. /opt/kestrel/ros_ws/install/setup.bash\nexec "$@"\n' \
      > /entrypoint.sh && chmod +x /entrypoint.sh
ENTRYPOINT ["/entrypoint.sh"]
CMD ["kestrel", "up"]
