"""How many messages wait in a work queue, asked over plain AMQP."""

import pika
import pika.exceptions

from infra.rabbitmq.amqp import connection_parameters

# For a queue that is gone or a broker that does not answer: certainly not 'empty'.
UNKNOWN_DEPTH = 2**31


class QueueDepth:
    """
    Asks the broker, one short connection a question; asked a few times in seconds at most.

    Good for work queues. What `queue.declare` says of a delay lane is not to be trusted.
    """

    def __init__(self, broker_url: str) -> None:
        self._broker_url = broker_url

    def __call__(self, queue_name: str) -> int:
        """Return the number of ready messages; `UNKNOWN_DEPTH` where it cannot be had."""
        parameters = connection_parameters(self._broker_url, name="queue depth")
        parameters.blocked_connection_timeout = 5
        try:
            connection = pika.BlockingConnection(parameters)
            try:
                frame = connection.channel().queue_declare(queue_name, passive=True)
                return int(frame.method.message_count)
            finally:
                if connection.is_open:
                    connection.close()
        except (pika.exceptions.AMQPError, OSError):
            return UNKNOWN_DEPTH
