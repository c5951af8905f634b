# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""A node that answers every cloud on /lidar/points with an empty one of the same stamp, on one of two topics.

The argument: seconds that one answer takes. Like the real nodes it keeps the newest input only. At its
end it prints how many it has received and answered.
"""

import signal
import sys
import threading
import time

import rclpy
from rclpy.executors import SingleThreadedExecutor
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rclpy.signals import SignalHandlerOptions
from sensor_msgs.msg import PointCloud2


def main() -> None:
    work_s = float(sys.argv[1])
    rclpy.init(signal_handler_options=SignalHandlerOptions.NO)
    node = rclpy.create_node("echo")
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    stop, waiting, newest, counts = (
        threading.Event(),
        threading.Condition(),
        [],
        {"received": 0, "answered": 0},
    )
    publisher = node.create_publisher(PointCloud2, "/echo/output/echo", 10)
    node.create_publisher(PointCloud2, "/echo/output/never", 10)

    def work() -> None:
        while not stop.is_set():
            with waiting:
                if not newest and not waiting.wait(0.1):
                    continue
                message = newest.pop()
            time.sleep(work_s)
            publisher.publish(PointCloud2(header=message.header))
            counts["answered"] += 1

    def arrived(message: PointCloud2) -> None:
        counts["received"] += 1
        with waiting:
            newest[:] = [message]
            waiting.notify()

    qos = QoSProfile(depth=100, reliability=ReliabilityPolicy.RELIABLE)
    node.create_subscription(PointCloud2, "/lidar/points", arrived, qos)
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    thread = threading.Thread(target=work)
    thread.start()
    while not stop.is_set():
        executor.spin_once(timeout_sec=0.05)
    thread.join()
    print(counts["received"], counts["answered"], flush=True)
    executor.shutdown()
    node.destroy_node()
    rclpy.try_shutdown()


if __name__ == "__main__":
    main()
